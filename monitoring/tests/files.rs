//! What must hold of rules, unit tests, runbooks and dashboards without running them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;
use siskin_monitoring::{
    dashboards::queries,
    files::{self, RULE_FILES, RUNBOOKS},
    promql,
    rules::{Alert, RuleFile},
};

fn rule_files() -> Vec<RuleFile> {
    RULE_FILES.map(|file| RuleFile::parse(&files::read(file).unwrap()).unwrap()).into()
}

fn alerts() -> Vec<Alert> {
    let mut alerts = Vec::new();
    for file in rule_files() {
        for group in file.groups {
            alerts.extend(group.rules.into_iter().filter_map(|rule| match rule {
                siskin_monitoring::rules::Rule::Alerting(alert) => Some(alert),
                siskin_monitoring::rules::Rule::Recording(_) => None,
            }));
        }
    }
    assert!(!alerts.is_empty());
    alerts
}

fn dashboards() -> Vec<(String, Value)> {
    let files = files::list(files::DASHBOARDS, ".json").unwrap();
    assert_eq!(files.len(), 6);
    let parsed = files.into_iter().map(|file| {
        let json = serde_json::from_str(&files::read(&file).unwrap()).unwrap();
        (file, json)
    });
    parsed.collect()
}

fn yaml(file: &str) -> Value {
    serde_yaml_ng::from_str(&files::read(file).unwrap()).unwrap()
}

#[test]
fn every_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on() {
    for alert in alerts() {
        let name = &alert.alert;
        assert!(name.starts_with("Siskin"), "{name}");
        let severity = alert.labels.get("severity").map(String::as_str);
        assert!(matches!(severity, Some("critical" | "warning" | "info")), "{name}: {severity:?}");
        let keys: Vec<_> = alert.annotations.keys().map(String::as_str).collect();
        assert_eq!(keys, ["description", "runbook_url", "summary"], "{name}");
        let url = format!("https://github.com/siskin-agent/siskin/blob/main/{RUNBOOKS}/{name}.md");
        assert_eq!(alert.annotations["runbook_url"], url);
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let runbooks: BTreeSet<_> = files::list(RUNBOOKS, ".md")
        .unwrap()
        .into_iter()
        .filter_map(|file| {
            Some(file.strip_prefix(RUNBOOKS)?.strip_prefix("/Siskin")?.strip_suffix(".md")?.to_owned())
        })
        .map(|rest| format!("Siskin{rest}"))
        .collect();
    let names: BTreeSet<_> = alerts().into_iter().map(|alert| alert.alert).collect();
    assert_eq!(runbooks, names);
    let index = files::read(&format!("{RUNBOOKS}/README.md")).unwrap();
    for name in names {
        let text = files::read(&format!("{RUNBOOKS}/{name}.md")).unwrap();
        assert!(text.starts_with(&format!("# {name}\n")), "{name}");
        let sections: Vec<_> = text.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(sections, ["## Meaning", "## Likely causes", "## Look", "## Remedies"], "{name}");
        assert!(index.contains(&format!("({name}.md)")), "{name} is not in the index");
    }
}

#[test]
fn runbooks_link_only_to_files_that_are_there() {
    for file in files::list(RUNBOOKS, ".md").unwrap().into_iter().chain(["docs/monitoring.md".to_owned()]) {
        let text = files::read(&file).unwrap();
        let folder = files::path(&file).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            assert!(link.starts_with("https://") || folder.join(path).exists(), "{file}: {link}");
        }
    }
}

#[test]
fn the_runbook_of_losses_explains_every_reason() {
    let text = files::read(&format!("{RUNBOOKS}/SiskinLosses.md")).unwrap();
    // The last two are not the programs': the kernel's own count, and the table of workloads'.
    let reasons = siskin_ebpf::Loss::ALL.map(siskin_ebpf::Loss::reason);
    for reason in reasons.into_iter().chain(["recursion", "workload_limit"]) {
        assert!(text.contains(&format!("\n* `{reason}`: ")), "{reason} is not explained");
    }
}

/// What the unit tests show of an alert.
#[derive(Debug, Default, PartialEq)]
struct Shown {
    fires: bool,
    resolves: bool,
    stays_quiet: bool,
}

/// By alert; a group of tests counts in the order of its evaluations.
fn shown() -> BTreeMap<String, Shown> {
    let mut all: BTreeMap<String, Shown> = BTreeMap::new();
    for file in files::list(files::UNIT_TESTS, ".test.yaml").unwrap() {
        for group in yaml(&file)["tests"].as_array().unwrap() {
            let mut runs: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
            for case in group["alert_rule_test"].as_array().into_iter().flatten() {
                let fires = case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
                runs.entry(case["alertname"].as_str().unwrap()).or_default().push(fires);
            }
            for (alert, runs) in runs {
                let shown = all.entry(alert.to_owned()).or_default();
                let first = runs.iter().position(|fires| *fires);
                shown.fires |= first.is_some();
                shown.resolves |= first.is_some_and(|first| runs[first..].contains(&false));
                // Its own case, and not a glance in the case of another alert.
                let own = group["name"].as_str().unwrap().starts_with(&format!("{alert}:"));
                shown.stays_quiet |= own && first.is_none() && runs.len() > 1;
            }
        }
    }
    all
}

#[test]
fn every_alert_is_seen_to_fire_to_resolve_and_to_stay_quiet() {
    let shown = shown();
    let all = Shown { fires: true, resolves: true, stays_quiet: true };
    for alert in alerts() {
        assert_eq!(shown.get(&alert.alert), Some(&all), "{}", alert.alert);
    }
    assert_eq!(shown.len(), alerts().len(), "a unit test is for an alert that is not there");
}

#[test]
fn unit_tests_evaluate_recordings_before_alerts() {
    let known: BTreeSet<_> =
        rule_files().into_iter().flat_map(|file| file.groups).map(|group| group.name).collect();
    for file in files::list(files::UNIT_TESTS, ".test.yaml").unwrap() {
        let test = yaml(&file);
        let order: Vec<_> =
            test["group_eval_order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(order.iter().all(|name| known.contains(*name)), "{file}: {order:?}");
        assert!(order.is_sorted_by_key(|name| name.ends_with("-alerts")), "{file}: {order:?}");
    }
}

#[test]
fn expressions_name_only_what_is_exported() {
    let mut known: BTreeSet<String> =
        rule_files().iter().flat_map(RuleFile::rules).map(|rule| rule.name().to_owned()).collect();
    for metric in siskin::metrics::ALL {
        let suffixes: &[&str] = match metric.kind {
            siskin::metrics::Kind::Histogram => &["_bucket", "_sum", "_count"],
            siskin::metrics::Kind::Counter | siskin::metrics::Kind::Gauge => &[""],
        };
        known.extend(suffixes.iter().map(|suffix| format!("{}{suffix}", metric.name)));
    }
    // Prometheus's own, and those of the process that the agent exports besides.
    known.extend(
        [
            "up",
            "ALERTS",
            "scrape_duration_seconds",
            "scrape_samples_scraped",
            "scrape_samples_post_metric_relabeling",
            "process_start_time_seconds",
            "process_resident_memory_bytes",
        ]
        .map(str::to_owned),
    );
    let cluster = files::read("deploy/monitoring/tests/kube-state-metrics.prom").unwrap();
    let samples = cluster.lines().filter(|line| !line.starts_with('#'));
    known.extend(samples.filter_map(|line| Some(line.split_once('{')?.0.to_owned())));

    let mut expressions: Vec<(String, String)> = Vec::new();
    for rule in rule_files().iter().flat_map(RuleFile::rules) {
        expressions.push((rule.name().to_owned(), rule.expr().to_owned()));
    }
    for (file, dashboard) in dashboards() {
        let queries = queries(&dashboard).into_iter();
        expressions.extend(queries.map(|(place, expr)| (format!("{file}, {place}"), expr)));
    }
    for file in files::list(RUNBOOKS, ".md").unwrap() {
        let text = files::read(&file).unwrap();
        let queries = text.lines().filter_map(|line| line.strip_prefix("    PromQL: "));
        expressions.extend(queries.map(|expr| (file.clone(), expr.to_owned())));
    }
    assert!(expressions.len() > 100, "{}", expressions.len());
    for (place, expr) in expressions {
        let parsed = promql::parse(&promql::substitute(&expr).unwrap()).unwrap();
        for name in promql::names(&parsed) {
            assert!(known.contains(&name), "{place}: nothing exports {name}");
        }
    }
}

#[test]
fn panels_have_ids_of_their_own_and_do_not_overlap() {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        assert!(uids.insert(dashboard["uid"].as_str().unwrap().to_owned()), "{file}");
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{file}: {title}");
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            let (x, y, w, h) = (side("x"), side("y"), side("w"), side("h"));
            assert!(w > 0 && h > 0 && x + w <= 24, "{file}: {title} is out of the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(cells.insert(cell), "{file}: {title} lies on another panel");
            }
            if panel["type"] != "row" {
                assert!(!panel["targets"].as_array().unwrap().is_empty(), "{file}: {title} asks nothing");
            }
        }
    }
}

#[test]
fn variables_in_expressions_are_defined() {
    for (file, dashboard) in dashboards() {
        let list = dashboard["templating"]["list"].as_array().unwrap();
        let defined: BTreeSet<_> = list.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
        for (place, expr) in queries(&dashboard) {
            for rest in expr.split('$').skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let name = &rest[..end];
                assert!(name.starts_with("__") || defined.contains(name), "{file}, {place}: ${name}");
            }
        }
        for name in defined.iter().filter(|name| **name != "datasource") {
            let used = queries(&dashboard).iter().any(|(_, expr)| expr.contains(&format!("${name}")));
            assert!(used, "{file}: nothing uses ${name}");
        }
    }
}

#[test]
fn estimates_show_their_standard_error() {
    for name in ["siskin-flows", "siskin-disk", "siskin-debug"] {
        let text = files::read(&format!("{}/{name}.json", files::DASHBOARDS)).unwrap();
        assert!(text.contains("siskin:estimate_variance:square"), "{name}");
    }
}

/// A relabelling of the operator in the words of plain Prometheus.
fn plain(relabeling: &Value) -> Value {
    let name = |key: &str| match key {
        "sourceLabels" => "source_labels".to_owned(),
        "targetLabel" => "target_label".to_owned(),
        other => other.to_owned(),
    };
    relabeling.as_object().unwrap().iter().map(|(key, value)| (name(key), value.clone())).collect()
}

#[test]
fn both_scrape_configurations_make_the_same_labels() {
    let monitor = yaml("deploy/monitoring/podmonitor.yaml");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let job = &yaml(files::SCRAPE)["scrape_configs"][0];
    assert_eq!(endpoint["interval"], job["scrape_interval"]);
    assert_eq!(endpoint["scrapeTimeout"], job["scrape_timeout"]);
    let operator: Vec<_> = endpoint["relabelings"].as_array().unwrap().iter().map(plain).collect();
    // The first two do what the monitor's selector and port say, and the operator's own.
    assert_eq!(operator, job["relabel_configs"].as_array().unwrap()[2..]);
    let selector = &monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"];
    let keep = format!(
        "{};{};{}",
        monitor["metadata"]["namespace"].as_str().unwrap(),
        selector.as_str().unwrap(),
        endpoint["port"].as_str().unwrap()
    );
    assert_eq!(job["relabel_configs"][0]["regex"], keep);
}

#[test]
fn rules_and_monitor_fit_the_daemonset() {
    let text = files::read("deploy/daemonset.yaml").unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let documents: Vec<Value> =
        documents.map(|document| serde::Deserialize::deserialize(document).unwrap()).collect();
    let set = documents.iter().find(|document| document["kind"] == "DaemonSet").unwrap();
    assert_eq!(set["metadata"]["namespace"], "siskin");
    assert_eq!(set["metadata"]["name"], "siskin");
    let pod = &set["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "siskin");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["name"], "siskin");
    assert_eq!(container["ports"][0]["name"], "metrics");
}

#[test]
fn the_prometheus_rule_has_every_rule() {
    let operator = yaml("deploy/monitoring/prometheusrule.yaml");
    let operator: RuleFile = serde_json::from_value(operator["spec"].clone()).unwrap();
    let plain: Vec<_> = rule_files().into_iter().flat_map(|file| file.groups).collect();
    assert_eq!(operator.groups, plain);
}

#[test]
fn the_alertmanager_example_names_only_alerts_that_are_there() {
    let names: BTreeSet<_> = alerts().into_iter().map(|alert| alert.alert).collect();
    let text = fs::read_to_string(files::path("deploy/monitoring/alertmanager.yaml")).unwrap();
    for quoted in text.split('"').skip(1).step_by(2).filter(|quoted| quoted.starts_with("Siskin")) {
        let (prefix, rest) = quoted.split_once('(').unwrap_or((quoted, ""));
        let ends = if rest.is_empty() { vec![""] } else { rest.trim_end_matches(')').split('|').collect() };
        for end in ends.into_iter().filter(|_| !prefix.ends_with(".*")) {
            assert!(names.contains(&format!("{prefix}{end}")), "{quoted}");
        }
    }
}
