//! Names of log directories and links, on their way to labels.

use siskin::{
    exposition::Exposition,
    metrics::{self, written_bytes},
    workload::logs,
};

/// A name that is read is made of what was read, and whatever is a label is one line that says just that.
pub fn log_names(data: &[u8]) {
    let name = String::from_utf8_lossy(data);
    if let Some((uid, pod)) = logs::pod(name.clone().into_owned()) {
        let begin = format!("{}_{}_", pod.namespace, pod.name);
        let rest = name.strip_prefix(&begin).map(|rest| rest.replace('_', "-"));
        assert_eq!(rest, Some(uid.to_string()));
        assert!(!pod.namespace.is_empty() && !pod.name.is_empty() && pod.directory == name);
        label(&pod.name, metrics::POD_BYTES);
    }
    if let Some((id, labels)) = logs::link(&name) {
        assert_eq!(name, format!("{}_{}_{}-{id}.log", labels.pod, labels.namespace, labels.container));
        assert!(![&id, &labels.pod, &labels.namespace, &labels.container].iter().any(|part| part.is_empty()));
        label(&labels.container, metrics::CONTAINER_BYTES);
    }
    label(&name, metrics::CONTAINER_BYTES);
}

/// As long as allowed, and written so that it can be read back.
fn label(text: &str, most: usize) {
    let fitting = metrics::fit(text, most);
    assert!(written_bytes(&fitting) <= most);
    assert!(fitting == text || written_bytes(text) > most && text.ends_with(&fitting[17..]));
    let mut out = Exposition::default();
    out.counter(&metrics::PROCESS_EXECS, &["", "", &fitting], 1.0);
    let text = out.into_text();
    let lines: Vec<_> = text.split('\n').filter(|line| !line.starts_with('#')).collect();
    let [line, ""] = lines[..] else { panic!("{lines:?}") };
    let begin = "siskin_process_execs_total{namespace=\"\",pod=\"\",container=\"";
    let written = line.strip_prefix(begin).and_then(|rest| rest.strip_suffix("\"} 1"));
    assert_eq!(written.map(unescaped).as_deref(), Some(&*fitting), "{line}");
}

/// What a label's value means; a quote inside of it would end it early.
fn unescaped(written: &str) -> String {
    let mut characters = written.chars();
    let mut text = String::new();
    while let Some(character) = characters.next() {
        assert_ne!(character, '"');
        text.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(escaped @ ('\\' | '"')) => escaped,
                other => panic!("\\{other:?}"),
            },
            other => other,
        });
    }
    text
}
