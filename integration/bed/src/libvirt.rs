//! A libvirtd of `target/libvirt`, on a host of its own name, as the user nobody.
//!
//! The daemon sees the unpacked programs, a QEMU build, its own folder and whatever else is shown to it below `/mnt`,
//! in a mount namespace of its own. It needs root.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::error::{Context, Error, Result};
use crate::qemu_build::target_dir;

/// The user of the daemon and of its QEMUs.
const NOBODY: u32 = 65534;
/// What a daemon is started with. The arguments are what it is shown, and where.
const START: &str = "hostname \"$NAME\" && mount -t tmpfs none /mnt && \
    while [ $# -gt 0 ]; do { [ -d \"$1\" ] && mkdir \"$2\" || : >\"$2\"; } && mount --bind \"$1\" \"$2\" || exit; shift 2; done && \
    mount --bind /mnt/libvirt/share /usr/share && exec setpriv --reuid=65534 --regid=65534 --clear-groups \
    env -i PATH=/usr/bin:/bin HOME=/mnt/at XDG_RUNTIME_DIR=/mnt/at/run XDG_CONFIG_HOME=/mnt/at/config \
    XDG_CACHE_HOME=/mnt/at/cache XDG_DATA_HOME=/mnt/at/data \
    /mnt/libvirt/bin/libvirtd --listen -f /mnt/at/libvirtd.conf --pid-file /mnt/at/run/pid --timeout 600";

/// What a daemon is to be like.
#[derive(Debug)]
pub struct LibvirtdSpec<'a> {
    /// Its folder, which it sees as `/mnt/at` and shares with its QEMUs. It must not be there yet.
    pub at: &'a Path,
    /// The number of its host, in the host's name and in its id.
    pub host: u32,
    /// The address at which it takes another daemon's calls.
    pub address: &'a str,
    /// The program of QEMU, which it sees below `/mnt/qemu`, with the build's other files.
    pub qemu: &'a Path,
    /// Whether it logs all that is said on monitors.
    pub logs_monitors: bool,
    /// Files and folders that it is shown, and where below `/mnt`.
    pub shown: Vec<(PathBuf, String)>,
}

/// A daemon that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Libvirtd {
    at: PathBuf,
    child: Child,
}

impl Libvirtd {
    /// The port on which a daemon takes the other one's calls.
    pub const PORT: u16 = 16509;
    /// The QEMU of its domains, as it sees it.
    pub const EMULATOR: &'static str = "/mnt/qemu/bin/qemu-system-x86_64";

    /// The folder of the unpacked programs.
    ///
    /// # Errors
    /// They are not there.
    pub fn programs() -> Result<PathBuf> {
        let programs = target_dir().join("libvirt");
        if !programs.join("version").exists() {
            return Err(Error::new(format!("no libvirt in {}: run scripts/libvirt", programs.display())));
        }
        programs.canonicalize().context(|| "the folder of libvirt's programs")
    }

    /// Starts a daemon in the network namespace of the caller's thread, and waits until it answers.
    ///
    /// # Errors
    /// Something is missing, or the daemon does not start; with its words.
    pub fn start(spec: &LibvirtdSpec<'_>) -> Result<Self> {
        let at = spec.at.to_owned();
        let doing = || format!("preparing {}", at.display());
        for folder in ["", "run", "config", "config/libvirt", "cache", "data"] {
            fs::create_dir(at.join(folder)).context(doing)?;
            give_to_nobody(&at.join(folder))?;
        }
        let mut settings = format!(
            "listen_tls = 0\nlisten_tcp = 1\ntcp_port = \"{}\"\nlisten_addr = \"{}\"\nauth_tcp = \"none\"\n\
             auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nhost_uuid = \"00000000-0000-4000-8000-{:012x}\"\n",
            Self::PORT,
            spec.address,
            spec.host
        );
        if spec.logs_monitors {
            settings += "log_filters = \"1:qemu.qemu_monitor\"\nlog_outputs = \"1:file:/mnt/at/log\"\n";
        }
        fs::write(at.join("libvirtd.conf"), settings).context(doing)?;
        // without virtlogd, and without a security driver of the host's
        let settings = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\n";
        fs::write(at.join("config/libvirt/qemu.conf"), settings).context(doing)?;
        let qemu = spec.qemu.canonicalize().context(|| spec.qemu.display().to_string())?;
        let build = qemu.ancestors().nth(2).unwrap_or(&qemu);
        let said = fs::File::create(at.join("said")).context(doing)?;
        let mut command = Command::new("unshare");
        command.args(["--uts", "--mount", "sh", "-c", START, "sh"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.arg(Self::programs()?).arg("/mnt/libvirt").arg(build).arg("/mnt/qemu").arg(&at).arg("/mnt/at");
        for (from, to) in &spec.shown {
            command.arg(from).arg(to);
        }
        command.stderr(said).env("NAME", format!("host{}", spec.host));
        let child = command.spawn().context(|| "starting libvirtd")?;
        let mut daemon = Self { at, child };
        let begun = Instant::now();
        while !daemon.socket().exists() {
            let ended = !matches!(daemon.child.try_wait(), Ok(None));
            if ended || begun.elapsed() > PATIENCE {
                return Err(Error::new(format!("libvirtd does not start: {}", daemon.said())));
            }
            sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// Its folder, as everybody else sees it.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.at.join("run/libvirt/libvirt-sock")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.at.join("said")).unwrap_or_default().trim().to_owned()
    }

    /// Waits until the daemon ends, which it is not to, and returns what it said.
    pub fn ended(&mut self) -> Error {
        match self.child.wait() {
            Ok(status) => Error::new(format!("libvirtd has ended ({status}): {}", self.said())),
            Err(error) => Error::new(format!("waiting for libvirtd: {error}")),
        }
    }

    /// The pid of a domain's QEMU.
    pub fn pid_of(&self, domain: &str) -> Option<String> {
        let pid = fs::read_to_string(self.at.join(format!("run/libvirt/qemu/run/{domain}.pid"))).ok()?;
        Some(pid.trim().to_owned())
    }

    /// The command `virsh` for the daemon at a socket.
    ///
    /// # Errors
    /// It has not been unpacked.
    pub fn virsh_at(socket: &Path) -> Result<Command> {
        let mut command = Command::new(Self::programs()?.join("bin/virsh"));
        command.args(["-q", "-c", &format!("qemu:///session?socket={}", socket.display())]).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `virsh` to its end, and returns what it says.
    ///
    /// # Errors
    /// It failed, with its words.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Self::virsh_at(&self.socket())?.args(arguments).output().context(|| "starting virsh")?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Error::new(format!("virsh {}: {}", arguments.join(" "), said.trim()))),
        }
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let domains = fs::read_dir(self.at.join("run/libvirt/qemu/run")).into_iter().flatten().flatten();
        let names = domains.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".pid")?.to_owned()));
        let qemus: Vec<String> = names.filter_map(|name| self.pid_of(&name)).collect();
        drop((self.child.kill(), self.child.wait()));
        for pid in qemus {
            drop(Command::new("kill").args(["-KILL", &pid]).stderr(Stdio::null()).status());
        }
    }
}

/// Gives a file to the user of the daemon and of its QEMUs.
///
/// # Errors
/// The caller is not root.
pub fn give_to_nobody(file: &Path) -> Result<()> {
    chown(file, Some(NOBODY), Some(NOBODY)).context(|| format!("giving {} to nobody", file.display()))
}

/// A text in an attribute or an element of XML.
pub fn xml_text(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            // a String takes everything
            '&' | '<' | '>' | '\'' | '"' => write!(escaped, "&#{};", u32::from(c)).unwrap_or_default(),
            c => escaped.push(c),
        }
    }
    escaped
}
