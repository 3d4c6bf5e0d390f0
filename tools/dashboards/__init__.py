"""The Grafana dashboards of `deploy/grafana/dashboards`, as code.

`python -m tools.dashboards` writes them. `queries` writes PromQL, `panels` makes panels, and each
dashboard is a module of its own, listed in `registry`. `live` runs their queries as Grafana would,
and `draw` draws them where there is no Grafana.
"""
