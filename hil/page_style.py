"""The look of our pages: one sheet, in each page, light or dark as the screen."""

__all__ = ["PAGE_STYLE"]

PAGE_STYLE = """
:root{color-scheme:light dark;--ink:#26302b;--soft:#69756e;--page:#f6f7f4;
--card:#fff;--edge:#e1e5df;--grid:#e3e6e2}
@media (prefers-color-scheme:dark){
:root{--ink:#e4e9e5;--soft:#9caaa2;--page:#151a17;--card:#1e2521;--edge:#323c36;--grid:#343e38}
.plot polyline,.plot circle,.plot rect,td[style],b[style]{filter:brightness(1.6)}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0}
main{max-width:1180px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:28px;margin:0 0 4px}.sub{color:var(--soft);margin:0 0 24px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:0 0 20px}
.tile{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:26px;line-height:1.2}
.tile span{display:block;color:var(--soft);font-size:13px;line-height:1.35}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:12px}
.plot{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px}
.plot svg{width:100%;height:auto;display:block}
.wide{overflow-x:auto;margin:20px 0}.wide table{margin:0}.wide td,.wide th{white-space:nowrap}
table{border-collapse:collapse;background:var(--card);border:1px solid var(--edge);border-radius:10px}
table{width:100%;margin:20px 0}
td,th{padding:6px 14px;text-align:right;border-top:1px solid var(--edge);font-variant-numeric:tabular-nums}
th{border-top:0;color:var(--soft);font-weight:600;font-size:13px}td:first-child,th:first-child{text-align:left}
"""
