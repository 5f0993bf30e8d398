//! The file to which a QEMU of this host writes its log: that of `-D`, or its stderr.
//!
//! Owns the search for the file and the reading of the part that was written since. Where QEMU logs must never be
//! changed here, and the log is never written to. Every operation on a file blocks: an async caller uses
//! `spawn_blocking`.

use super::log_line::{DeviceLines, LOG_LINE, read_device_line};
use crate::{
    endpoint::{id_in_namespace, seen_by},
    progress::{DeviceTime, Side},
    qmp::frame::{LineCut, LineCutter},
};
use rustix::fs::OFlags;
use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The most bytes of a command line that are read.
const COMMAND_LINE: u64 = 1 << 20;
/// The most descriptors of a process that are looked at.
const DESCRIPTORS: usize = 1 << 16;
/// The most bytes of a log that are read: the last ones, for QEMU saves and loads devices at the end.
const MOST: u64 = 16 << 20;
/// The most threads that are looked up.
const THREADS: usize = 64;

/// The reason why the log of a QEMU cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NoLogFile {
    /// What `-D` names is no file, or QEMU was started without `-D` and its stderr is none.
    #[error("writes its log to {0}")]
    NoFile(&'static str),
    /// The file of `-D` is not open.
    #[error("does not have the log {0} of its command line open")]
    NotOpen(String),
    /// The file cannot be opened, or the process cannot be looked at.
    #[error("has a log that cannot be read ({0})")]
    Unreadable(#[source] io::Error),
    /// The file is shorter than it was.
    #[error("has a log that was cut since")]
    Cut,
}

/// The log of a QEMU, and where in it the part begins that is read.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    pid: u32,
    /// Whether threads have the same ids here as in the process.
    same_namespace: bool,
    from: u64,
}

impl LogFile {
    /// Finds the log of a process. The part that is read begins at the end that the log has now.
    ///
    /// # Errors
    /// The log is no file, or cannot be read.
    pub fn find(pid: u32) -> Result<Self, NoLogFile> {
        let root = PathBuf::from(format!("/proc/{pid}"));
        let mut words = Vec::new();
        let command_line = File::open(root.join("cmdline")).map_err(NoLogFile::Unreadable)?;
        command_line.take(COMMAND_LINE).read_to_end(&mut words).map_err(NoLogFile::Unreadable)?;
        let descriptor = match log_option(&words) {
            Some(name) => {
                let name = with_pid(&name, pid);
                if fs::metadata(seen_by(pid, &name)).is_ok_and(|data| !data.is_file()) {
                    return Err(NoLogFile::NoFile(kind_of(Path::new(&name))));
                }
                let open = find_open(pid, &root, &name).map_err(NoLogFile::Unreadable)?;
                open.ok_or(NoLogFile::NotOpen(name))?
            }
            None => root.join("fd/2"),
        };
        let is_file = fs::metadata(&descriptor).map_err(NoLogFile::Unreadable)?.is_file();
        if !is_file {
            return Err(NoLogFile::NoFile(kind_of(&fs::read_link(&descriptor).unwrap_or_default())));
        }
        // The link leads to the open file itself, whatever has become of its name.
        let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&descriptor);
        let file = opened.map_err(NoLogFile::Unreadable)?;
        let data = file.metadata().map_err(NoLogFile::Unreadable)?;
        match data.is_file() {
            true => {
                let same_namespace = id_in_namespace(pid) == Some(pid.into());
                Ok(Self { file, pid, same_namespace, from: data.len() })
            }
            false => Err(NoLogFile::NoFile("no file")),
        }
    }

    /// The devices that a side's log tells of since it was found; `None` where another QEMU writes to the same log and
    /// its lines cannot be told apart.
    ///
    /// # Errors
    /// The log cannot be read, or is shorter than it was.
    pub fn devices(&self, side: Side) -> Result<Option<Vec<DeviceTime>>, NoLogFile> {
        let end = self.file.metadata().map_err(NoLogFile::Unreadable)?.len();
        if end < self.from {
            return Err(NoLogFile::Cut);
        }
        let mut at = self.from.max(end.saturating_sub(MOST));
        let (mut lines, mut threads) = (DeviceLines::new(side), ThreadOwners::new(self));
        let (mut cutter, mut chunk) = (LineCutter::new(LOG_LINE), vec![0; 64 << 10]);
        while at < end {
            let wanted = chunk.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let read = self.file.read_at(&mut chunk[..wanted], at).map_err(NoLogFile::Unreadable)?;
            if read == 0 {
                break;
            }
            at += read as u64;
            cutter.reserve_space().extend_from_slice(&chunk[..read]);
            while let Some(cut) = cutter.next_cut() {
                let LineCut::Line(line) = cut else { continue };
                if let Some(line) = std::str::from_utf8(&line).ok().and_then(read_device_line) {
                    lines.take(&line, |thread| threads.is_foreign(thread));
                }
            }
        }
        Ok(lines.told())
    }
}

/// Which process each thread is of that has written a line.
struct ThreadOwners {
    pid: u32,
    same_namespace: bool,
    known: BTreeMap<u32, bool>,
}

impl ThreadOwners {
    fn new(log: &LogFile) -> Self {
        Self { pid: log.pid, same_namespace: log.same_namespace, known: BTreeMap::new() }
    }

    /// Whether a thread is proved to be another process's. Of a thread that has ended nothing is known, as of the
    /// source's that sent RAM.
    fn is_foreign(&mut self, thread: u32) -> bool {
        if !self.same_namespace {
            return false;
        }
        if self.known.len() == THREADS && !self.known.contains_key(&thread) {
            return true;
        }
        *self.known.entry(thread).or_insert_with(|| {
            let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
            process_of(&status).is_some_and(|process| process != self.pid)
        })
    }
}

/// The process of a thread, by the thread's `status` in `/proc`.
fn process_of(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The value of `-D` in a command line with a NUL behind each word; of several the last counts, as for QEMU.
fn log_option(words: &[u8]) -> Option<String> {
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    let named = words.windows(2).rev().find(|pair| matches!(pair[0], b"-D" | b"--D"))?;
    Some(String::from_utf8_lossy(named[1]).into_owned())
}

/// The name of a log with the process's own number in place of `%d`.
fn with_pid(name: &str, pid: u32) -> String {
    match id_in_namespace(pid) {
        Some(own) => name.replacen("%d", &own.to_string(), 1),
        None => name.to_owned(),
    }
}

/// The descriptor of a process that is the file of this name. A QEMU that made itself a daemon has another working
/// directory since, so the only open file whose path ends alike counts as well.
fn find_open(pid: u32, root: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    let id = |data: &Metadata| (data.dev(), data.ino());
    let wanted = fs::metadata(seen_by(pid, name)).ok().map(|data| id(&data));
    let mut alike = Vec::new();
    for entry in fs::read_dir(root.join("fd"))?.flatten().take(DESCRIPTORS) {
        let Some(data) = fs::metadata(entry.path()).ok().filter(Metadata::is_file) else { continue };
        if wanted == Some(id(&data)) {
            return Ok(Some(entry.path()));
        }
        if fs::read_link(entry.path()).is_ok_and(|path| path.ends_with(name.trim_start_matches("./"))) {
            alike.push((id(&data), entry.path()));
        }
    }
    alike.dedup_by_key(|(id, _)| *id);
    let only = alike.pop().filter(|_| alike.is_empty());
    Ok(only.map(|(_, path)| path))
}

/// What a descriptor is that is no file, by its link in `/proc`.
fn kind_of(link: &Path) -> &'static str {
    match link.to_string_lossy() {
        link if link.starts_with("pipe:") => "a pipe",
        link if link.starts_with("socket:") => "a socket",
        link if link == "/dev/null" => "/dev/null",
        link if link.starts_with("/dev/pts/") || link.starts_with("/dev/tty") => "a terminal",
        _ => "no file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Child, Command, Stdio},
    };

    /// A process that stands for a QEMU, with these words on its command line.
    struct Stand(Child);

    impl Stand {
        fn start(folder: &Path, script: &str, words: &[&str], stderr: Stdio) -> Self {
            let mut command = Command::new("sh");
            command.current_dir(folder).args(["-c", script, "qemu"]).args(words).stderr(stderr);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // the script has opened its files once it says so
            let mut said = [0; 1];
            child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            Self(child)
        }
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    const WAITS: &str = "echo; read x";

    fn file(folder: &Path, name: &str) -> File {
        OpenOptions::new().create(true).append(true).open(folder.join(name)).unwrap()
    }

    fn line(device: &str, us: u64) -> String {
        format!("vmstate_downtime_save type=non-iterable idstr={device} instance_id=0 downtime={us}\n")
    }

    #[test]
    fn the_file_of_the_option_is_found_and_read_from_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = file(folder.path(), "q.log");
        log.write_all(line("before", 1).as_bytes()).unwrap();
        for (script, words) in [
            ("exec 7>>q.log; echo; read x", vec!["-D", "other", "-D", "q.log"]),
            ("exec 7>>q.log; echo; read x", vec!["-D", "./q.log"]),
            // a daemon
            ("exec 7>>q.log; cd /; echo; read x", vec!["--D", "q.log"]),
        ] {
            let stand = Stand::start(folder.path(), script, &words, Stdio::null());
            let found = LogFile::find(stand.0.id()).unwrap();
            assert_eq!(found.devices(Side::Source).unwrap(), Some(Vec::new()));
            log.write_all(line("cpu", 5).as_bytes()).unwrap();
            log.write_all(b"vmstate_downtime_save type=non-iter").unwrap();
            let told = found.devices(Side::Source).unwrap().unwrap();
            assert_eq!(told.iter().map(|one| (&*one.device, one.us)).collect::<Vec<_>>(), [("cpu", 5)], "{words:?}");
            assert_eq!(found.devices(Side::Destination).unwrap(), Some(Vec::new()));
            log.write_all(b"\n").unwrap();
        }
        let stand = Stand::start(folder.path(), WAITS, &["-D", "q.log"], Stdio::null());
        assert!(matches!(LogFile::find(stand.0.id()), Err(NoLogFile::NotOpen(name)) if name == "q.log"));
    }

    #[test]
    fn a_log_on_stderr_is_read_where_it_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = file(folder.path(), "stderr");
        let stand = Stand::start(folder.path(), WAITS, &[], file(folder.path(), "stderr").into());
        let found = LogFile::find(stand.0.id()).unwrap();
        log.write_all(line("cpu", 5).as_bytes()).unwrap();
        assert_eq!(found.devices(Side::Source).unwrap().map(|told| told.len()), Some(1));
        // a second time: another QEMU's
        log.write_all(line("cpu", 6).as_bytes()).unwrap();
        assert_eq!(found.devices(Side::Source).unwrap(), None);
        let mut other = Stand::start(folder.path(), WAITS, &[], Stdio::null());
        let foreign = format!("{}@1796048677.694501:{}", other.0.id(), line("foreign", 7));
        let found = LogFile::find(stand.0.id()).unwrap();
        log.write_all(format!("{foreign}{}@1.5:{}", stand.0.id(), line("own", 8)).as_bytes()).unwrap();
        let told = found.devices(Side::Source).unwrap().unwrap();
        assert_eq!(told.iter().map(|one| &*one.device).collect::<Vec<_>>(), ["own"]);
        other.0.stdin.take();
        log.set_len(0).unwrap();
        assert!(matches!(found.devices(Side::Source), Err(NoLogFile::Cut)));
    }

    #[test]
    fn a_log_that_is_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (stderr, kind) in [(Stdio::piped(), "a pipe"), (Stdio::null(), "/dev/null")] {
            let stand = Stand::start(folder.path(), WAITS, &[], stderr);
            let error = LogFile::find(stand.0.id()).unwrap_err();
            assert!(matches!(&error, NoLogFile::NoFile(found) if *found == kind), "{error:?}");
        }
        let stand = Stand::start(folder.path(), WAITS, &["-D", "/dev/null"], file(folder.path(), "stderr").into());
        assert!(matches!(LogFile::find(stand.0.id()), Err(NoLogFile::NoFile("/dev/null"))));
        assert!(matches!(LogFile::find(u32::MAX), Err(NoLogFile::Unreadable(_))));
        for (link, kind) in [("socket:[1]", "a socket"), ("/dev/pts/3", "a terminal"), ("/dev/kmsg", "no file")] {
            assert_eq!(kind_of(Path::new(link)), kind);
        }
    }

    #[test]
    fn a_large_log_is_read_from_its_end_in_bounded_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = file(folder.path(), "stderr");
        let stand = Stand::start(folder.path(), WAITS, &[], file(folder.path(), "stderr").into());
        let found = LogFile::find(stand.0.id()).unwrap();
        log.write_all(line("early", 1).as_bytes()).unwrap();
        // a sparse line of zeros, as long as all that is read
        log.set_len(log.metadata().unwrap().len() + MOST).unwrap();
        log.write_all(format!("\n{}", line("late", 2)).as_bytes()).unwrap();
        let told = found.devices(Side::Source).unwrap().unwrap();
        assert_eq!(told.iter().map(|one| &*one.device).collect::<Vec<_>>(), ["late"]);
    }
}
