//! A panel: what it asks, and how it shows the answer.

use serde_json::{Value, json};

/// Green while all is well.
pub const GREEN: &str = "green";
/// Look at it.
pub const YELLOW: &str = "yellow";
/// Do something.
pub const RED: &str = "red";

/// A panel without a place yet.
pub struct Panel {
    kind: &'static str,
    title: String,
    description: String,
    pub width: u64,
    pub height: u64,
    targets: Vec<Value>,
    defaults: Value,
    overrides: Vec<Value>,
    options: Value,
    transformations: Vec<Value>,
}

impl Panel {
    fn new(kind: &'static str, title: &str, (width, height): (u64, u64), options: Value) -> Self {
        Self {
            kind,
            title: title.to_owned(),
            description: String::new(),
            width,
            height,
            targets: Vec::new(),
            defaults: json!({}),
            overrides: Vec::new(),
            options,
            transformations: Vec::new(),
        }
    }

    /// Values over time as lines.
    pub fn graph(title: &str) -> Self {
        let options = json!({
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
            "tooltip": {"mode": "multi", "sort": "desc"},
        });
        let mut panel = Self::new("timeseries", title, (12, 8), options);
        panel.defaults["custom"] =
            json!({"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false});
        panel.defaults["min"] = json!(0);
        panel
    }

    /// One number.
    pub fn number(title: &str) -> Self {
        let options = json!({
            "reduceOptions": {"calcs": ["lastNotNull"], "values": false},
            "colorMode": "value", "graphMode": "area", "textMode": "auto",
        });
        Self::new("stat", title, (4, 5), options)
    }

    /// Values now, in rows.
    pub fn table(title: &str) -> Self {
        let mut panel = Self::new("table", title, (24, 9), json!({"showHeader": true, "cellHeight": "sm"}));
        panel.defaults["custom"] = json!({"align": "auto", "filterable": true});
        panel
    }

    /// Bars beside each other, of values now.
    pub fn bars(title: &str) -> Self {
        let options = json!({
            "displayMode": "gradient", "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "values": false},
        });
        Self::new("bargauge", title, (12, 8), options)
    }

    /// States over time.
    pub fn states(title: &str) -> Self {
        let options = json!({
            "mergeValues": true, "showValue": "never", "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": false},
        });
        let mut panel = Self::new("state-timeline", title, (24, 8), options);
        panel.defaults["custom"] = json!({"fillOpacity": 80, "lineWidth": 0});
        panel
    }

    /// A histogram over time. `rate` is per bucket, by `le`.
    pub fn heat_map(title: &str, rate: &str) -> Self {
        let options = json!({
            "calculate": false,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
            "filterValues": {"le": 1e-9},
            "yAxis": {"unit": "s", "axisPlacement": "left"},
            "tooltip": {"mode": "single", "yHistogram": false},
            "legend": {"show": true},
            "rowsFrame": {"layout": "auto"},
        });
        let mut panel = Self::new("heatmap", title, (12, 9), options);
        panel
            .targets
            .push(json!({"refId": "A", "expr": rate, "legendFormat": "{{le}}", "format": "heatmap"}));
        panel
    }

    /// What it shows, and how to read it.
    pub fn about(mut self, text: &str) -> Self {
        self.description = text.to_owned();
        self
    }

    /// Columns and lines of the grid.
    pub fn size(mut self, width: u64, height: u64) -> Self {
        (self.width, self.height) = (width, height);
        self
    }

    /// The unit, as Grafana calls it.
    pub fn unit(mut self, unit: &str) -> Self {
        self.defaults["unit"] = json!(unit);
        self
    }

    /// The top of the scale.
    pub fn up_to(mut self, max: f64) -> Self {
        self.defaults["max"] = json!(max);
        self
    }

    /// Lets the scale begin above zero.
    pub fn from(mut self, min: f64) -> Self {
        self.defaults["min"] = json!(min);
        self
    }

    /// A series over time.
    pub fn query(mut self, expr: &str, legend: &str) -> Self {
        let target = json!({"refId": self.next(), "expr": expr, "legendFormat": legend});
        self.targets.push(target);
        self
    }

    /// The values now, as rows of a table.
    pub fn now(mut self, expr: &str) -> Self {
        let target = json!({"refId": self.next(), "expr": expr, "format": "table", "instant": true});
        self.targets.push(target);
        self
    }

    fn next(&self) -> String {
        char::from(b'A' + self.targets.len() as u8).to_string()
    }

    /// Puts values on top of each other.
    pub fn stacked(mut self) -> Self {
        self.defaults["custom"]["stacking"] = json!({"mode": "normal", "group": "A"});
        self.defaults["custom"]["fillOpacity"] = json!(40);
        self
    }

    /// Colours by value: the first up to the first number, and so on.
    pub fn colours(mut self, base: &str, steps: &[(f64, &str)]) -> Self {
        let steps = steps.iter().map(|(value, color)| json!({"color": color, "value": value}));
        let steps: Vec<_> = [json!({"color": base, "value": null})].into_iter().chain(steps).collect();
        self.defaults["thresholds"] = json!({"mode": "absolute", "steps": steps});
        self.defaults["color"] = json!({"mode": "thresholds"});
        self
    }

    /// A line at a value that should not be crossed.
    pub fn line(mut self, value: f64) -> Self {
        let steps = [json!({"color": "transparent", "value": null}), json!({"color": RED, "value": value})];
        self.defaults["thresholds"] = json!({"mode": "absolute", "steps": steps});
        self.defaults["custom"]["thresholdsStyle"] = json!({"mode": "line"});
        self
    }

    /// Words for values.
    pub fn words(mut self, words: &[(&str, &str, &str)]) -> Self {
        let options: serde_json::Map<_, _> = words
            .iter()
            .map(|(value, text, color)| ((*value).to_owned(), json!({"text": text, "color": color})))
            .collect();
        self.defaults["mappings"] = json!([{"type": "value", "options": options}]);
        self
    }

    /// Fills the space between two lines.
    pub fn band(mut self, lower: &str, upper: &str) -> Self {
        let thin = |name: &str, more: &[Value]| {
            let mut properties = vec![
                json!({"id": "custom.lineWidth", "value": 0}),
                json!({"id": "custom.fillOpacity", "value": 0}),
                json!({"id": "color", "value": {"mode": "fixed", "fixedColor": "light-blue"}}),
            ];
            properties.extend_from_slice(more);
            json!({"matcher": {"id": "byName", "options": name}, "properties": properties})
        };
        self.overrides.push(thin(lower, &[]));
        let fill = [
            json!({"id": "custom.fillBelowTo", "value": lower}),
            json!({"id": "custom.fillOpacity", "value": 25}),
        ];
        self.overrides.push(thin(upper, &fill));
        self
    }

    /// Joins the queries' tables into one by a label, and names the columns of their values. A column may have a unit.
    pub fn join(mut self, label: &str, columns: &[(&str, &str)]) -> Self {
        self.transformations
            .push(json!({"id": "joinByField", "options": {"byField": label, "mode": "outer"}}));
        let mut names = serde_json::Map::new();
        for (index, (column, unit)) in columns.iter().enumerate() {
            let query = char::from(b'A' + index as u8);
            // A single query's value has no letter.
            let field = if columns.len() == 1 { "Value".to_owned() } else { format!("Value #{query}") };
            names.insert(field, json!(column));
            if !unit.is_empty() {
                self.overrides.push(json!({
                    "matcher": {"id": "byName", "options": column},
                    "properties": [{"id": "unit", "value": unit}],
                }));
            }
        }
        self.organize(&names)
    }

    /// Names the column of a table's only query.
    pub fn column(self, name: &str, unit: &str) -> Self {
        let names = [("Value".to_owned(), json!(name))].into_iter().collect();
        self.unit(unit).organize(&names)
    }

    fn organize(mut self, names: &serde_json::Map<String, Value>) -> Self {
        // Joined tables have a time each.
        let times = (1..=9).map(|number| format!("Time {number}")).chain(["Time".to_owned()]);
        let meta = ["__name__", "instance", "job"].map(str::to_owned).into_iter();
        let hidden: serde_json::Map<_, _> = times.chain(meta).map(|field| (field, json!(true))).collect();
        self.transformations
            .push(json!({"id": "organize", "options": {"excludeByName": hidden, "renameByName": names, "indexByName": {}}}));
        self
    }

    /// The panel in its place.
    pub fn json(&self, id: usize, x: u64, y: u64) -> Value {
        let source = json!({"type": "prometheus", "uid": "${datasource}"});
        let mut targets = self.targets.clone();
        for target in &mut targets {
            target["datasource"] = source.clone();
        }
        let mut panel = json!({
            "id": id, "type": self.kind, "title": self.title,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": source, "targets": targets,
            "fieldConfig": {"defaults": self.defaults, "overrides": self.overrides},
            "options": self.options,
        });
        if !self.description.is_empty() {
            panel["description"] = json!(self.description);
        }
        if !self.transformations.is_empty() {
            panel["transformations"] = json!(self.transformations);
        }
        panel
    }
}
