"""Tables, plots and the HTML page.

Other rooms leave their tables in the bundle's folder `analysis/`, as `vitedge.tables.to_json` writes them; the report
renders them as they are, and no room imports this package. Files are shown in the order of their names
(`10-prune.json`, `20-condition.json`, `30-quantize.json`, ...). A null is a figure that was not measured, and is shown
as a dash. A file that is no such table is named in the report with what is wrong; it never stops the report.
"""
