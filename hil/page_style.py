"""The look of our pages: one sheet, in each page, so that it stands alone."""

__all__ = ["PAGE_STYLE"]

PAGE_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#26302b;background:#f6f7f4;margin:0}
main{max-width:1180px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:28px;margin:0 0 4px}.sub{color:#69756e;margin:0 0 24px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:0 0 20px}
.tile{background:#fff;border:1px solid #e1e5df;border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:26px;line-height:1.2}.tile span{color:#69756e;font-size:13px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:12px}
.plot{background:#fff;border:1px solid #e1e5df;border-radius:10px;padding:12px}
.plot svg{width:100%;height:auto;display:block}
table{border-collapse:collapse;background:#fff;border:1px solid #e1e5df;border-radius:10px;width:100%}
table{margin:20px 0}
td,th{padding:6px 14px;text-align:right;border-top:1px solid #eef0ec;font-variant-numeric:tabular-nums}
th{border-top:0;color:#69756e;font-weight:600;font-size:13px}td:first-child,th:first-child{text-align:left}
"""
