//! Just enough of the newc format for an initramfs.

/// An archive being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

impl Archive {
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, (0, 0), &[]);
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, (0, 0), content);
    }

    /// A character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, DEVICE, (major, minor), &[]);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, time, size, its own device (2), the device it is (2), name's size, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device, content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back.
    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut found = Vec::new();
        let start = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).expect("a whole header");
                u32::from_str_radix(text, 16).expect("a whole header")
            };
            let (mode, size, device, name_size) =
                (field(1), field(6) as usize, (field(9), field(10)), field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).expect("a whole header");
            if name == "TRAILER!!!" {
                return found;
            }
            let content_at = (110 + name_size).next_multiple_of(4);
            let next = (content_at + size).next_multiple_of(4);
            found.push((name, mode, device, bytes[content_at..content_at + size].to_vec()));
            bytes = &bytes[next..];
            assert_eq!((start - bytes.len()) % 4, 0);
        }
    }

    #[test]
    fn reads_back_what_was_put_in() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.device("dev/null", 1, 3);
        archive.file("init", b"abcde");
        archive.file("x", b"");
        let bytes = archive.finish();
        let expected = [
            ("dev".to_owned(), 0o040_755, (0, 0), vec![]),
            ("dev/null".to_owned(), 0o020_600, (1, 3), vec![]),
            ("init".to_owned(), 0o100_755, (0, 0), b"abcde".to_vec()),
            ("x".to_owned(), 0o100_755, (0, 0), vec![]),
        ];
        assert_eq!(entries(&bytes), expected);
    }
}
