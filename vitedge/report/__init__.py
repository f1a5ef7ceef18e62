"""Tables, plots and the HTML page.

Other rooms leave their facts for the report as JSON in the bundle's folder `analysis/`, one file a table
(or several), with nothing but `vitedge.files.write_json`; the report renders them as they are, and no room
imports this package. `analysis/<order>-<name>.json` holds one table, or `{"tables": [table, ...]}`:

    {"title": "Quantisation error by layer",            heading of the section
     "columns": ["layer", "sqnr_db", "delta_top1"],     names; the unit is in the name: _ms, _mib, _db, _mj
     "rows": [["block0.mlp.fc1", 31.2, -0.002], ...],   strings, numbers, booleans or null, as many as columns
     "note": "768 images of ./calib, CPU",              how it was measured; optional
     "step": "quant",                                   the step that wrote it; optional
     "bars": ["sqnr_db"],                               columns drawn as bars beside their figures; optional
     "command": "vitedge compress --quant int8"}        what makes it again; optional

Files are shown in the order of their names (`10-condition.json`, `20-prune.json`, `30-quant.json`,
`40-layer-error.json`, `50-cost-rknn.json`). A null is a figure that was not measured, and is shown as a dash.
A file that is not such a table is named in the report with what is wrong; it never stops the report.
"""
