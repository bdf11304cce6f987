//! Cgroups: their paths, the programs' notes of them, the kernel's list of hierarchies.

use siskin::workload::{
    cgroup::v1_number,
    notes::{self, KEY_BYTES, NOTE_WORDS, Note},
    path::{Place, Uid, place},
};

/// A path says something that is written in it, and the same below another cgroup and with another one nested in it.
pub fn cgroup_paths(data: &[u8]) {
    let path = String::from_utf8_lossy(data);
    let found = place(&path);
    match &found {
        Place::Container { pod, id } => {
            assert!(path.contains(&**id) && (32..=64).contains(&id.len()));
            assert!(pod.is_some() || id.len() == 64);
            pod.iter().for_each(|uid| is_written(*uid, &path));
        }
        Place::Pod(uid) => is_written(*uid, &path),
        Place::Host(name) => assert!(path.contains(&**name)),
    }
    let nested = format!("{path}/nested");
    // A cgroup that is called by its path has a longer path now.
    let by_path = matches!(&found, Place::Host(name) if **name == *path);
    let again = place(&nested);
    assert!(again == found || by_path && again == Place::Host(nested.into()), "{again:?}");
    if path.starts_with('/') && !matches!(found, Place::Host(_)) {
        assert_eq!(place(&format!("/outer{path}")), found);
    }
}

/// A uid is on the path, as the kubelet or as systemd writes it, below something of Kubernetes.
fn is_written(uid: Uid, path: &str) {
    let text = uid.to_string();
    assert!(path.contains("kubepods") && path.replace('_', "-").contains(&text), "{text} in {path}");
    assert_eq!(Uid::parse(&text), Some(uid));
}

/// A note is what its bytes say: the path ends at its first zero.
pub fn cgroup_notes(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.resize(KEY_BYTES + NOTE_WORDS * 8, 0);
    let (key, note) = bytes.split_at(KEY_BYTES);
    let mut words = [0; NOTE_WORDS];
    for (word, bytes) in words.iter_mut().zip(note.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    let Some(key) = key.first_chunk() else { return };
    let Note { id, path, is_released, hierarchy: _ } = notes::decode(key, &words);
    assert_eq!(id.to_ne_bytes(), key[..8]);
    assert_eq!(is_released, words[0] != 0);
    let written = note[8..].split(|byte| *byte == 0).next().unwrap_or_default();
    assert_eq!(path.unwrap_or_default(), String::from_utf8_lossy(written));
}

/// The number of a hierarchy stands on its controller's line, and is not that of cgroup2.
pub fn proc_cgroups(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(number) = v1_number(&text, "blkio") {
        assert_ne!(number, 0);
        let says_so = |line: &str| {
            let mut words = line.split_whitespace();
            words.next() == Some("blkio") && words.next().and_then(|word| word.parse().ok()) == Some(number)
        };
        assert!(text.lines().any(says_so));
    }
}
