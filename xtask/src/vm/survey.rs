//! What the agent can do on a kernel, as the guest's program `survey` says it (tests/src/bin/survey.rs).

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A hook of a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Hook {
    /// `tcp`.
    pub probe: String,
    /// `tp_btf/inet_sock_set_state`.
    pub hook: String,
    /// `tcp_state`.
    pub program: String,
    /// `attached`, `replaced`, `limited`, `unsupported`, `failed`.
    pub state: String,
    /// Why it is not attached.
    pub reason: String,
    /// Instructions that the verifier looked at, where the kernel says (5.16).
    pub instructions: Option<u64>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The kernel's release.
    pub release: String,
    /// Bytes of `/sys/kernel/btf/vmlinux`.
    pub btf_bytes: u64,
    /// Probes and what they can do: `ok`, `limited`, `cannot run`.
    pub probes: Vec<(String, String)>,
    /// Every hook, in the agent's order.
    pub hooks: Vec<Hook>,
    /// The fewest capabilities with which every hook is as it is for root.
    pub privileges: String,
}

impl Survey {
    /// Takes one line.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let bad = || format!("the guest said `{line}`");
        match word {
            "btf" => self.btf_bytes = rest.parse().with_context(bad)?,
            "check" => self.report(&serde_json::from_str(rest).with_context(bad)?).with_context(bad)?,
            "privileges" => self.privileges = rest.to_owned(),
            // For the guest itself.
            "have" => {}
            _ => bail!("the guest said `{line}`, which means nothing here"),
        }
        Ok(())
    }

    /// Takes the report of `siskin check --json`.
    fn report(&mut self, report: &Value) -> Result<()> {
        let text = |value: &Value, name: &str| {
            Ok::<_, anyhow::Error>(value[name].as_str().with_context(|| format!("no `{name}`"))?.to_owned())
        };
        let list = |value: &Value, name: &str| {
            Ok::<_, anyhow::Error>(
                value[name].as_array().with_context(|| format!("no list `{name}`"))?.clone(),
            )
        };
        self.release = text(report, "release")?;
        for probe in list(report, "probes")? {
            let name = text(&probe, "probe")?;
            self.probes.push((name.clone(), text(&probe, "state")?));
            for hook in list(&probe, "hooks")? {
                self.hooks.push(Hook {
                    probe: name.clone(),
                    hook: text(&hook, "hook")?,
                    program: text(&hook, "program")?,
                    state: text(&hook, "state")?,
                    reason: text(&hook, "reason")?,
                    instructions: hook["verified_instructions"].as_u64(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_agents_report() -> Result<()> {
        let mut survey = Survey::default();
        survey.line("btf 42")?;
        survey.line("have tcp")?;
        survey.line("privileges CAP_BPF, CAP_PERFMON")?;
        survey.line(
            r#"check {"release":"6.1.0","probes":[{"probe":"tcp","state":"ok","hooks":[{"hook":"iter/a","program":"p","state":"attached","reason":"","verified_instructions":7}]}]}"#,
        )?;
        assert_eq!((survey.btf_bytes, survey.release.as_str()), (42, "6.1.0"));
        assert_eq!(survey.probes, [("tcp".to_owned(), "ok".to_owned())]);
        assert_eq!(survey.hooks[0].instructions, Some(7));
        assert_eq!(survey.privileges, "CAP_BPF, CAP_PERFMON");
        assert!(survey.line("check {}").is_err());
        assert!(survey.line("nonsense").is_err());
        Ok(())
    }
}
