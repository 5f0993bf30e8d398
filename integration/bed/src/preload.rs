//! Libraries that are preloaded into a program: flushes that take longer, and a wall clock of its own. Each reads a
//! number from a file, at every call anew. No block driver of QEMU delays flushes alone, and the host's clock is
//! everybody's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::qemu_build::target_dir;

/// One library.
pub(crate) struct Library {
    name: &'static str,
    source: &'static str,
    /// The variable that names the file.
    variable: &'static str,
    /// The name of the file, which holds milliseconds.
    file: &'static str,
}

/// `fdatasync` and `fsync` take longer.
pub(crate) const SLOW_FLUSH: Library = Library {
    name: "slow-flush",
    source: include_str!("slow_flush.c"),
    variable: "QFERRY_SLOW_FLUSH",
    file: "flush-takes",
};
/// The wall clock is ahead of the host's.
pub(crate) const OWN_CLOCK: Library = Library {
    name: "own-clock",
    source: include_str!("own_clock.c"),
    variable: "QFERRY_OWN_CLOCK",
    file: "clock-is-ahead",
};

impl Library {
    /// The library, built by the C compiler that the linker of every toolchain here comes with.
    fn build(&self) -> Result<PathBuf> {
        let folder = target_dir().join(self.name);
        let library = folder.join(self.name).with_extension("so");
        let source = folder.join(self.name).with_extension("c");
        if library.exists() && fs::read_to_string(&source).is_ok_and(|built| built == self.source) {
            return Ok(library);
        }
        fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display()))?;
        // Built in a folder of its own and renamed into place, because other tests may be building the library, too.
        let build = tempfile::tempdir_in(&folder).context(|| format!("creating a folder in {}", folder.display()))?;
        let own = build.path().join(self.name).with_extension("c");
        fs::write(&own, self.source).context(|| format!("writing {}", own.display()))?;
        let new = own.with_extension("so");
        // Without a version of the C library of this host: QEMU brings another one.
        let words = ["-O1", "-shared", "-fPIC", "-nostdlib", "-o"];
        let output = Command::new("cc").args(words).arg(&new).arg(&own).output().context(|| "starting cc")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("building {}: {}", own.display(), said.trim())));
        }
        fs::rename(&new, &library).context(|| format!("replacing {}", library.display()))?;
        fs::rename(&own, &source).context(|| format!("replacing {}", source.display()))?;
        Ok(library)
    }

    /// Says the milliseconds from now on, for the program in that folder.
    pub(crate) fn tell(&self, folder: &Path, ms: i64) -> Result<()> {
        // Renamed into place, so that no call finds half a number.
        let (path, new) = (folder.join(self.file), folder.join(format!("{}.new", self.file)));
        fs::write(&new, ms.to_string()).context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &path).context(|| format!("replacing {}", path.display()))
    }
}

/// Has a program in that folder use these libraries, which change nothing until they are told to.
pub(crate) fn preload(command: &mut Command, folder: &Path, libraries: &[&Library]) -> Result<()> {
    let mut paths = Vec::new();
    for library in libraries {
        // Before the program starts, so that the file is nothing that was left behind.
        library.tell(folder, 0)?;
        command.env(library.variable, folder.join(library.file));
        paths.push(library.build()?.display().to_string());
    }
    if !paths.is_empty() {
        command.env("LD_PRELOAD", paths.join(":"));
    }
    Ok(())
}

/// Makes each flush of a file take so much longer in a program that is no QEMU of the bed. The folder must have no
/// other.
///
/// # Errors
/// The library cannot be built.
pub fn flush_slowly(command: &mut Command, folder: &Path, longer: Duration) -> Result<()> {
    preload(command, folder, &[&SLOW_FLUSH])?;
    SLOW_FLUSH.tell(folder, i64::try_from(longer.as_millis()).unwrap_or(i64::MAX))
}

/// The wall clock of a program that is no QEMU of the bed.
#[derive(Clone, Debug)]
pub struct OwnClock {
    folder: PathBuf,
}

impl OwnClock {
    /// Gives a program a wall clock of its own, which shows the host's time at first. The folder must have no other.
    ///
    /// # Errors
    /// The library cannot be built.
    pub fn give(command: &mut Command, folder: &Path) -> Result<Self> {
        preload(command, folder, &[&OWN_CLOCK])?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Sets the clock to so many milliseconds ahead of the host's.
    ///
    /// # Errors
    /// The time cannot be written down.
    pub fn set_ahead(&self, ms: i64) -> Result<()> {
        OWN_CLOCK.tell(&self.folder, ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_program_has_a_wall_clock_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("date");
        let clock = OwnClock::give(command.arg("+%s").stdout(Stdio::piped()), folder.path()).unwrap();
        let mut seconds = |ahead: i64| -> i64 {
            clock.set_ahead(ahead * 1000).unwrap();
            String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse().unwrap()
        };
        let at_first = seconds(0);
        // A busy host takes its time between two programs, and not an hour.
        for step in [3600, -3600, 0] {
            let differs = seconds(step) - at_first - step;
            assert!((0..600).contains(&differs), "{step}: {differs}");
        }
    }
}
