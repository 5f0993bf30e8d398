//! A QEMU without a guest system, which starts in a third of a second.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::PATIENCE;
use crate::error::{Context, Error, Result};
use crate::qemu_build::Build;
use crate::qmp::Qmp;

/// The time between two attempts to connect.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A running QEMU with one monitor, 64 MiB and further arguments. Dropping the value kills QEMU.
pub struct Bare {
    child: Child,
    folder: TempDir,
}

impl Bare {
    /// Starts a version by the name it has under `target/qemu`, and waits for its monitor.
    ///
    /// # Errors
    /// The version is missing, or QEMU does not start; the error has QEMU's words.
    pub fn start(version: &str, arguments: &[&str]) -> Result<Self> {
        let build = Build::locate(version)?;
        let folder = tempfile::Builder::new().prefix("qferry-").tempdir().context(|| "creating a folder")?;
        let stderr = File::create(folder.path().join("stderr")).context(|| "creating the file for QEMU's stderr")?;
        let socket = format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
        let child = Command::new(build.program("qemu-system-x86_64"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "64M", "-qmp", &socket])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .context(|| format!("starting QEMU {version}"))?;
        let mut bare = Self { child, folder };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = Qmp::connect(&bare.qmp_path()) {
            let ended = bare.child.try_wait().context(|| "looking after QEMU")?;
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(bare.folder.path().join("stderr")).unwrap_or_default();
                return Err(Error::new(format!("QEMU {version} did not start: {error}; it said: {}", said.trim())));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(bare)
    }

    /// The unix socket of the monitor.
    pub fn qmp_path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // A QEMU that has ended already is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
