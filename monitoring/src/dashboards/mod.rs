//! The Grafana dashboards, one file each, and what they are built of.

mod debug;
mod disk;
mod executive;
mod flows;
mod oncall;
mod panel;
mod processes;

use serde_json::{Value, json};

use panel::Panel;

/// Every dashboard: its file's name and its JSON.
pub fn all() -> Vec<(&'static str, Value)> {
    [
        executive::dashboard(),
        oncall::dashboard(),
        debug::dashboard(),
        flows::dashboard(),
        processes::dashboard(),
        disk::dashboard(),
    ]
    .into_iter()
    .map(|dashboard| (dashboard.uid, dashboard.json()))
    .collect()
}

/// Width of Grafana's grid.
const COLUMNS: u64 = 24;

/// A dashboard.
struct Dashboard {
    /// Its identity in links, and its file's name.
    uid: &'static str,
    title: &'static str,
    description: &'static str,
    /// How much of the past it shows at first.
    from: &'static str,
    variables: Vec<Value>,
    /// Panels under a heading, from left to right and top to bottom.
    rows: Vec<(&'static str, Vec<Panel>)>,
}

impl Dashboard {
    fn json(&self) -> Value {
        let mut variables = vec![data_source()];
        variables.extend(self.variables.clone());
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["siskin"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "1m",
            "time": {"from": self.from, "to": "now"},
            "timezone": "browser",
            "templating": {"list": variables},
            "links": [{
                "type": "dashboards", "title": "Siskin", "tags": ["siskin"], "asDropdown": true,
                "includeVars": true, "keepTime": true,
            }],
            "panels": self.panels(),
        })
    }

    fn panels(&self) -> Vec<Value> {
        let mut panels = Vec::new();
        let mut y = 0;
        for (title, row) in &self.rows {
            let id = panels.len() + 1;
            panels.push(json!({
                "id": id, "type": "row", "title": title, "collapsed": false, "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }));
            y += 1;
            let (mut x, mut line) = (0, 0);
            for panel in row {
                if x + panel.width > COLUMNS {
                    (x, y, line) = (0, y + line, 0);
                }
                let id = panels.len() + 1;
                panels.push(panel.json(id, x, y));
                x += panel.width;
                line = line.max(panel.height);
            }
            y += line;
        }
        panels
    }
}

fn data_source() -> Value {
    json!({"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"})
}

/// A variable that chooses among a label's values; all of them at first.
fn choice(name: &str, label: &str, series: &str) -> Value {
    let query = format!("label_values({series}, {name})");
    json!({
        "name": name, "label": label, "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "values"},
        "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    })
}

fn node() -> Value {
    choice("node", "Node", "up{job=\"siskin\"}")
}

/// How many of the busiest are shown.
fn top() -> Value {
    let options: Vec<_> = ["5", "10", "20"]
        .map(|number| json!({"text": number, "value": number, "selected": number == "10"}))
        .into();
    json!({
        "name": "top", "label": "Busiest", "type": "custom", "query": "5,10,20", "options": options,
        "current": {"text": "10", "value": "10"},
    })
}

/// The standard error of a metric's five-minute rate over the chosen nodes.
fn rate_error(metric: &str) -> String {
    format!(
        "sqrt(sum(rate(siskin:estimate_variance:square{{metric=\"{metric}\",node=~\"$node\"}}[5m])) / 300)"
    )
}

/// A sampled rate between the bounds of what it may really be: 95% of the time within 1.96 standard errors.
fn estimate(title: &str, unit: &str, metric: &str, rate: &str) -> Panel {
    let error = rate_error(metric);
    Panel::graph(title)
        .about(
            "Sampled. The band is 1.96 standard errors to each side: the true rate is inside 95% of the time. Without \
             sampling it has no width.",
        )
        .unit(unit)
        .query(rate, "estimate")
        .query(&format!("{rate} + 1.96 * {error}"), "upper bound")
        .query(&format!("clamp_min({rate} - 1.96 * {error}, 0)"), "lower bound")
        .band("lower bound", "upper bound")
}

/// Every expression of a dashboard, with the title of its panel; of a variable, the series whose labels it lists.
pub fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        let values = variable["query"]["query"].as_str().unwrap_or_default();
        if let Some((series, _)) =
            values.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "))
        {
            found.push((format!("variable {}", text(&variable["name"])), series.to_owned()));
        }
    }
    found
}
