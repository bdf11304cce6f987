//! Writing a cpio archive of the kind that the kernel unpacks at boot ("newc",
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

/// An archive under construction. Directories above a file come by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            if self.directories.insert(path[..end].to_owned()) {
                self.entry(&path[..end], DIRECTORY, &[]);
            }
        }
    }

    /// Adds a file that everybody may read and execute.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory);
        }
        self.entry(path, EXECUTABLE, content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("no file of ours has 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        self.bytes.extend(b"070701");
        // Inode, mode, owner, group, links, time, size, two devices of two numbers each, name's length, no checksum.
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and contents, read back field by field.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut offset = 0;
        while let Some(rest) = archive.get(offset..).filter(|rest| !rest.is_empty()) {
            assert_eq!(&rest[..6], b"070701");
            let field = |index: usize| {
                let digits = str::from_utf8(&rest[6 + index * 8..14 + index * 8]).expect("digits");
                u32::from_str_radix(digits, 16).expect("a number")
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).expect("a name");
            let content = (110 + name_size).next_multiple_of(4);
            found.push((name, field(1), rest[content..content + size].to_vec()));
            archive = &rest[(content + size).next_multiple_of(4)..];
            offset = 0;
        }
        found
    }

    #[test]
    fn directories_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", b"1");
        archive.file("/a/two", b"22222");
        archive.directory("/a/b");
        archive.directory("/sys");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let entry = |name: &str, mode, content: &[u8]| (name.to_owned(), mode, content.to_vec());
        let expected = [
            entry("a", DIRECTORY, b""),
            entry("a/b", DIRECTORY, b""),
            entry("a/b/one", EXECUTABLE, b"1"),
            entry("a/two", EXECUTABLE, b"22222"),
            entry("sys", DIRECTORY, b""),
            entry("TRAILER!!!", 0, b""),
        ];
        assert_eq!(entries(&bytes), expected);
    }
}
