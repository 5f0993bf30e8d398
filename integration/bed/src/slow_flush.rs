//! Slow flushes: a library that is preloaded into QEMU and delays `fdatasync`, for as long as a file says at that
//! moment. No block driver of QEMU delays flushes alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::qemu_build::target_dir;

const SOURCE: &str = include_str!("slow_flush.c");

/// The name of the file, in the folder of a machine, that says how many milliseconds a flush takes.
const FILE: &str = "flush-takes";

/// The library, built by the C compiler that the linker of every toolchain here comes with.
fn library() -> Result<PathBuf> {
    let folder = target_dir().join("slow-flush");
    let library = folder.join("slow-flush.so");
    let source = folder.join("slow-flush.c");
    if library.exists() && fs::read_to_string(&source).is_ok_and(|built| built == SOURCE) {
        return Ok(library);
    }
    fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display()))?;
    // Built in a folder of its own and renamed into place, because other tests may be building the library, too.
    let build = tempfile::tempdir_in(&folder).context(|| format!("creating a folder in {}", folder.display()))?;
    let own = build.path().join("slow-flush.c");
    fs::write(&own, SOURCE).context(|| format!("writing {}", own.display()))?;
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

/// Has a QEMU in that folder flush as slowly as [`tell`] says.
pub(crate) fn preload(command: &mut Command, folder: &Path) -> Result<()> {
    // Before QEMU starts, so that the file is nothing that was left behind.
    tell(folder, Duration::ZERO)?;
    command.env("LD_PRELOAD", library()?).env("QFERRY_SLOW_FLUSH", folder.join(FILE));
    Ok(())
}

/// Says how much longer each flush of the QEMU in that folder takes from now on.
pub(crate) fn tell(folder: &Path, longer: Duration) -> Result<()> {
    // Renamed into place, so that no flush finds half a number.
    let (path, new) = (folder.join(FILE), folder.join(format!("{FILE}.new")));
    fs::write(&new, longer.as_millis().to_string()).context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, &path).context(|| format!("replacing {}", path.display()))
}
