"""Hardware in the loop: boards, the site that they report to, and one set of scenarios for all of them."""
