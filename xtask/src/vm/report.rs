//! What was found: as a table, against what is committed in tests/vm, and as docs/kernels.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use anyhow::{Context as _, Result};

use super::{
    Outcomes,
    guest::{Outcome, Said},
    survey::Survey,
};
use crate::{steps, workspace};

/// `SERIES PROBE HOOK PROGRAM STATE`: a hook that is no longer attached somewhere is a regression.
const SUPPORT: &str = "tests/vm/support.txt";
/// `PROGRAM INSTRUCTIONS`: what the verifier may look at, at most, on any kernel.
const INSTRUCTIONS: &str = "tests/vm/instructions.txt";
const PAGE: &str = "docs/kernels.md";

/// How many tests ended in each way.
#[derive(Debug, Default, PartialEq)]
struct Count {
    passed: usize,
    failed: usize,
    unsupported: usize,
}

fn count(said: &Said) -> Count {
    let mut count = Count::default();
    for ended in &said.ended {
        match ended.outcome {
            Outcome::Passed => count.passed += 1,
            Outcome::Failed(..) => count.failed += 1,
            Outcome::Unsupported(_) => count.unsupported += 1,
        }
    }
    count
}

/// Every kernel, probe and hook, then every kernel in a line.
pub fn table(outcomes: &[Outcomes]) -> String {
    let mut rows = vec![["kernel", "probe", "hook", "program", "result"].map(str::to_owned).to_vec()];
    for (series, survey) in surveys(outcomes) {
        for hook in &survey.hooks {
            let result = if hook.reason.is_empty() {
                hook.state.clone()
            } else {
                format!("{}: {}", hook.state, hook.reason)
            };
            rows.push(vec![
                series.to_owned(),
                hook.probe.clone(),
                hook.hook.clone(),
                hook.program.clone(),
                result,
            ]);
        }
    }
    let mut text = aligned(&rows);
    text.push('\n');
    let head = ["kernel", "release", "up", "passed", "failed", "unsupported", "boot", "in all"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for Outcomes { series, said, took } in outcomes {
        let mut row = vec![series.clone()];
        match said {
            Ok(said) => {
                let Count { passed, failed, unsupported } = count(said);
                row.push(said.survey.release.clone());
                row.push(up(&said.survey));
                row.extend([passed, failed, unsupported].map(|count| count.to_string()));
                row.push(format!("{:.1} s", said.boot_seconds));
            }
            Err(_) => row.extend(["-", "-", "-", "-", "-", "did not end"].map(str::to_owned)),
        }
        row.push(format!("{:.0} s", took.as_secs_f64()));
        rows.push(row);
    }
    text + &aligned(&rows)
}

/// The probes that do their work; one that tells less than everything in brackets.
fn up(survey: &Survey) -> String {
    let shown = |(probe, state): &(String, String)| match state.as_str() {
        "ok" => Some(probe.clone()),
        "limited" => Some(format!("({probe})")),
        _ => None,
    };
    let up: Vec<_> = survey.probes.iter().filter_map(shown).collect();
    if up.is_empty() { "-".to_owned() } else { up.join(" ") }
}

fn surveys(outcomes: &[Outcomes]) -> impl Iterator<Item = (&str, &Survey)> {
    outcomes.iter().filter_map(|of| Some((of.series.as_str(), &of.said.as_ref().ok()?.survey)))
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// All that is not as it should be: nothing may be.
pub fn wrong(outcomes: &[Outcomes]) -> Result<Vec<String>> {
    let read =
        |file| fs::read_to_string(workspace::path(file)).with_context(|| format!("cannot read {file}"));
    Ok(verdict(outcomes, &read(SUPPORT)?, &budget(&read(INSTRUCTIONS)?)?))
}

fn verdict(outcomes: &[Outcomes], support: &str, budget: &Budget) -> Vec<String> {
    let mut wrong = failures(outcomes);
    wrong.extend(against_support(outcomes, support));
    wrong.extend(against_budget(outcomes, budget));
    wrong
}

/// Kernels that did not come to their end, and tests that failed, or that none ran.
pub fn failures(outcomes: &[Outcomes]) -> Vec<String> {
    let mut failures = Vec::new();
    for Outcomes { series, said, .. } in outcomes {
        match said {
            Err(error) => failures.push(format!("{error:#}")),
            Ok(said) => {
                if said.survey.hooks.is_empty() {
                    failures.push(format!("kernel {series}: the agent said nothing of its hooks"));
                }
                let failed = said.ended.iter().filter(|ended| matches!(ended.outcome, Outcome::Failed(..)));
                failures.extend(failed.map(|ended| format!("kernel {series}: {} failed", ended.test)));
            }
        }
    }
    if outcomes.iter().all(|of| of.said.as_ref().is_ok_and(|said| said.ended.is_empty())) {
        failures.push("no test ran".to_owned());
    }
    failures
}

fn against_support(outcomes: &[Outcomes], committed: &str) -> Vec<String> {
    let committed: BTreeSet<_> = committed.lines().filter(|line| !line.starts_with('#')).collect();
    let mut differences = Vec::new();
    for (series, survey) in surveys(outcomes) {
        let found = support(series, survey);
        let of_series = |line: &&&str| line.split(' ').next() == Some(series);
        for line in
            committed.iter().filter(of_series).filter(|line| !found.iter().any(|found| found == *line))
        {
            differences.push(format!("kernel {series}: {SUPPORT} has `{line}`, which is not so"));
        }
        for line in found.iter().filter(|line| !committed.contains(line.as_str())) {
            differences.push(format!("kernel {series}: `{line}` is not in {SUPPORT}"));
        }
    }
    differences
}

fn support(series: &str, survey: &Survey) -> Vec<String> {
    let line = |hook: &super::survey::Hook| {
        format!("{series} {} {} {} {}", hook.probe, hook.hook, hook.program, hook.state)
    };
    survey.hooks.iter().map(line).collect()
}

type Budget = BTreeMap<String, u64>;

fn budget(text: &str) -> Result<Budget> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let (program, most) = line.split_once(' ')?;
        Some((program.to_owned(), most.trim().parse().ok()?))
    };
    lines.map(|line| entry(line).with_context(|| format!("{INSTRUCTIONS}: `{line}` is no budget"))).collect()
}

fn against_budget(outcomes: &[Outcomes], budget: &Budget) -> Vec<String> {
    let mut over = Vec::new();
    for (series, survey) in surveys(outcomes) {
        for hook in &survey.hooks {
            let (program, Some(count)) = (&hook.program, hook.instructions) else { continue };
            match budget.get(program) {
                None => over.push(format!(
                    "kernel {series}: {INSTRUCTIONS} has no line for {program}, which costs the verifier {count} instructions"
                )),
                Some(most) if count > *most => over.push(format!(
                    "kernel {series}: {program} costs the verifier {count} instructions, {INSTRUCTIONS} allows {most}"
                )),
                Some(_) => {}
            }
        }
    }
    over
}

/// Writes the page and what is committed of hooks.
pub fn write(outcomes: &[Outcomes], left: &[String]) -> Result<()> {
    let mut lines =
        "# Written by `cargo xtask vm --write`: kernel, probe, hook, program, state.\n".to_owned();
    for (series, survey) in surveys(outcomes) {
        for line in support(series, survey) {
            lines.push_str(&line);
            lines.push('\n');
        }
    }
    let text = fs::read_to_string(workspace::path(INSTRUCTIONS))
        .with_context(|| format!("cannot read {INSTRUCTIONS}"))?;
    for (file, text) in [(SUPPORT, lines), (PAGE, page(outcomes, left, &budget(&text)?))] {
        fs::write(workspace::path(file), text).with_context(|| format!("cannot write {file}"))?;
        steps::say(&format!("wrote {file}"));
    }
    Ok(())
}

/// The page for readers.
fn page(outcomes: &[Outcomes], left: &[String], budget: &Budget) -> String {
    let mut page = "<!-- Written by `cargo xtask vm --write`. Do not edit. -->\n\n# Kernels\n\n\
        What Siskin does on stock Debian cloud kernels, for x86_64 and for arm64, found by running it and its tests on each of them.\n\n"
        .to_owned();
    let surveys: Vec<_> = surveys(outcomes).collect();
    let head = ["Kernel", "Release", "BTF", "Probes up", "Privileges"];
    let rows = surveys.iter().map(|(series, survey)| {
        let btf = format!("{:.1} MB", survey.btf_bytes as f64 / 1e6);
        vec![(*series).to_owned(), survey.release.clone(), btf, up(survey), survey.privileges.clone()]
    });
    page.push_str(&markdown(&head.map(str::to_owned), rows));
    page.push_str(
        "\nA probe in brackets tells less than everything. Privileges are the fewest with which every hook is as it is for root. BTF is read at the start and not kept.\n\
         \n## Hooks\n\n",
    );

    let mut hooks: Vec<[&str; 3]> = Vec::new();
    for hook in surveys.iter().flat_map(|(_, survey)| &survey.hooks) {
        let id = [hook.probe.as_str(), &hook.hook, &hook.program];
        if !hooks.contains(&id) {
            hooks.push(id);
        }
    }
    let mut reasons: Vec<&str> = Vec::new();
    let mut rows = Vec::new();
    for id in hooks {
        let mut row = vec![id[0].to_owned(), format!("`{}`", id[1]), format!("`{}`", id[2])];
        for (_, survey) in &surveys {
            let hook =
                survey.hooks.iter().find(|hook| [hook.probe.as_str(), &hook.hook, &hook.program] == id);
            row.push(match hook {
                None => "-".to_owned(),
                Some(hook) if hook.reason.is_empty() => hook.state.clone(),
                Some(hook) => {
                    let number =
                        reasons.iter().position(|reason| *reason == hook.reason).unwrap_or_else(|| {
                            reasons.push(&hook.reason);
                            reasons.len() - 1
                        });
                    format!("{} ({})", hook.state, number + 1)
                }
            });
        }
        rows.push(row);
    }
    let series = surveys.iter().map(|(series, _)| (*series).to_owned());
    let head: Vec<_> =
        ["Probe", "Hook", "Program"].map(str::to_owned).into_iter().chain(series.clone()).collect();
    page.push_str(&markdown(&head, rows));
    if !reasons.is_empty() {
        page.push('\n');
    }
    for (number, reason) in reasons.iter().enumerate() {
        let _ = writeln!(page, "{}. {reason}", number + 1);
    }

    page.push_str(
        "\n## Verified instructions\n\nWhat the verifier looks at when it loads a program (`verified_insns` of `struct \
         bpf_prog_info`, 5.16), and the most that `tests/vm/instructions.txt` allows. `-`: the kernel does not say, or the \
         program is not loaded there.\n\n",
    );
    let head: Vec<_> =
        ["Program".to_owned()].into_iter().chain(series).chain(["At most".to_owned()]).collect();
    let rows = budget.iter().map(|(program, most)| {
        let of = |survey: &Survey| {
            let count =
                survey.hooks.iter().find(|hook| hook.program == *program).and_then(|hook| hook.instructions);
            count.map_or("-".to_owned(), |count| count.to_string())
        };
        let counts = surveys.iter().map(|(_, survey)| of(survey));
        [format!("`{program}`")].into_iter().chain(counts).chain([most.to_string()]).collect()
    });
    page.push_str(&markdown(&head, rows));

    if !left.is_empty() {
        page.push_str("\n## Tests that do not run in virtual machines\n\n");
        for line in left {
            let _ = writeln!(page, "* {line}");
        }
    }
    page
}

fn markdown(head: &[String], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head) + &line(&vec!["---".to_owned(); head.len()]);
    for row in rows {
        text.push_str(&line(&row));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::vm::{guest::Ended, survey::Hook};

    fn hook(hook: &str, state: &str, reason: &str, instructions: Option<u64>) -> Hook {
        let [probe, hook, program, state, reason] = ["tcp", hook, "one", state, reason].map(str::to_owned);
        Hook { probe, hook, program, state, reason, instructions }
    }

    fn outcomes() -> Vec<Outcomes> {
        let survey = Survey {
            release: "6.1.0".to_owned(),
            btf_bytes: 4_200_000,
            hooks: vec![
                hook("tp_btf/a", "attached", "", Some(100)),
                hook("iter/b", "unsupported", "no b", None),
            ],
            probes: [("tcp", "cannot run"), ("disk", "ok"), ("udp", "limited")]
                .map(|(probe, state)| (probe.to_owned(), state.to_owned()))
                .into(),
            privileges: "CAP_BPF".to_owned(),
        };
        let ended =
            |test: &str, outcome| Ended { test: test.to_owned(), outcome, took: Duration::from_secs(1) };
        let failed = Outcome::Failed("exit status 101".to_owned(), String::new());
        let ended = vec![
            ended("a", Outcome::Passed),
            ended("b", failed),
            ended("c", Outcome::Unsupported("udp".to_owned())),
        ];
        let said = Said { survey, boot_seconds: 2.0, ended, complete: true };
        let took = Duration::from_secs(9);
        vec![
            Outcomes { series: "6.1".to_owned(), said: Ok(said), took },
            Outcomes { series: "7.3".to_owned(), said: Err(anyhow::anyhow!("kernel 7.3: stuck")), took },
        ]
    }

    #[test]
    fn the_table_has_every_hook_and_every_kernel() {
        let expected = "\
kernel  probe  hook      program  result
6.1     tcp    tp_btf/a  one      attached
6.1     tcp    iter/b    one      unsupported: no b

kernel  release  up          passed  failed  unsupported  boot         in all
6.1     6.1.0    disk (udp)  1       1       1            2.0 s        9 s
7.3     -        -           -       -       -            did not end  9 s
";
        assert_eq!(table(&outcomes()), expected);
    }

    /// What `cargo xtask vm` fails for: nothing on a run in which all is well, and each thing that can be wrong by itself.
    #[test]
    fn each_thing_that_is_wrong_makes_the_run_fail() -> Result<()> {
        const AS_FOUND: &str = "6.1 tcp tp_btf/a one attached\n6.1 tcp iter/b one unsupported\n";
        let well = || {
            let mut outcomes = outcomes();
            outcomes.pop();
            if let Ok(said) = &mut outcomes[0].said {
                said.ended.retain(|ended| !matches!(ended.outcome, Outcome::Failed(..)));
            }
            outcomes
        };
        let wrong = |outcomes: &[Outcomes], support: &str, most: &str| {
            Ok::<_, anyhow::Error>(verdict(outcomes, support, &budget(most)?).len())
        };
        assert_eq!(wrong(&well(), AS_FOUND, "one 100")?, 0);
        assert_eq!(wrong(&outcomes()[..1], AS_FOUND, "one 100")?, 1, "a test that failed");
        let mut stuck = well();
        stuck.extend(outcomes().pop());
        assert_eq!(wrong(&stuck, AS_FOUND, "one 100")?, 1, "a kernel that did not come to its end");
        let mut idle = well();
        if let Ok(said) = &mut idle[0].said {
            said.ended.clear();
        }
        assert_eq!(wrong(&idle, AS_FOUND, "one 100")?, 1, "no test");
        let better = AS_FOUND.replace("unsupported", "attached");
        assert_eq!(wrong(&well(), &better, "one 100")?, 2, "a hook in another state: one line gone, one new");
        assert_eq!(wrong(&well(), AS_FOUND, "one 99")?, 1, "a program over its budget");
        Ok(())
    }

    #[test]
    fn failed_tests_and_kernels_are_failures() {
        assert_eq!(failures(&outcomes()), ["kernel 6.1: b failed", "kernel 7.3: stuck"]);
    }

    #[test]
    fn hooks_must_be_as_committed_in_both_directions() {
        let committed =
            "# comment\n6.1 tcp tp_btf/a one attached\n6.1 tcp iter/b one unsupported\n7.3 tcp x attached\n";
        assert!(against_support(&outcomes(), committed).is_empty());
        let lost =
            against_support(&outcomes(), "6.1 tcp tp_btf/a one attached\n6.1 tcp iter/b one attached\n");
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[0].contains("`6.1 tcp iter/b one attached`, which is not so"));
        assert_eq!(against_support(&outcomes(), "").len(), 2);
    }

    #[test]
    fn programs_must_be_within_their_budget() -> Result<()> {
        let over = |text| Ok::<_, anyhow::Error>(against_budget(&outcomes(), &budget(text)?));
        assert!(over("# comment\none 100\n")?.is_empty());
        assert_eq!(over("one 99\n")?.len(), 1);
        assert_eq!(over("two 100\n")?.len(), 1);
        assert!(budget("one many\n").is_err());
        Ok(())
    }

    #[test]
    fn the_page_numbers_reasons() -> Result<()> {
        let page = page(&outcomes(), &["x::y on 6.1: because".to_owned()], &budget("one 120\n")?);
        for line in [
            "| 6.1 | 6.1.0 | 4.2 MB | disk (udp) | CAP_BPF |",
            "| tcp | `iter/b` | `one` | unsupported (1) |",
            "1. no b",
            "| `one` | 100 | 120 |",
            "* x::y on 6.1: because",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}: {page}");
        }
        Ok(())
    }
}
