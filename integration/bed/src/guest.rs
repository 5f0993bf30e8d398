//! The guest: its kernel, and an initramfs made of its init and its modules.

use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use crate::cpio::Archive;
use crate::error::{Context, Error, Result};
use crate::qemu_build::{target_dir, workspace_dir};

/// The kernel and initramfs that a QEMU boots.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// Its initramfs, with the workload as init.
    pub(crate) initrd: PathBuf,
    /// An initramfs with the drivers of more virtio devices, if `scripts/kernel` has brought them.
    with_drivers: Option<PathBuf>,
}

/// The compiler target of the init: the one every toolchain here brings along.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The folder of the states of guests that have booted, beside the initramfs.
pub(crate) const BOOTED: &str = "booted";

static READY: OnceLock<std::result::Result<Guest, String>> = OnceLock::new();

impl Guest {
    /// The initramfs for a guest with the drivers of more devices than its disks.
    ///
    /// # Errors
    /// The drivers are missing.
    pub(crate) fn initrd_with_drivers(&self) -> Result<&Path> {
        let missing = || Error::new(format!("no drivers in {}: run scripts/kernel", drivers_dir().display()));
        self.with_drivers.as_deref().ok_or_else(missing)
    }

    /// Builds the init and the initramfs, or finds them up to date. Once per process, one process at a time.
    ///
    /// # Errors
    /// The kernel is missing, or the init does not build.
    pub(crate) fn prepare() -> Result<Self> {
        READY.get_or_init(|| build().map_err(|error| error.to_string())).clone().map_err(Error::new)
    }
}

fn build() -> Result<Guest> {
    let kernel = target_dir().join("guest").join("vmlinuz");
    if !kernel.exists() {
        return Err(Error::new(format!("no guest kernel at {}: run scripts/setup", kernel.display())));
    }
    let folder = target_dir().join("guest-build");
    fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context(|| "creating the guest's lock file")?;
    flock(&lock, FlockOperation::LockExclusive).context(|| "locking the guest's build")?;

    let init = build_init(&folder)?;
    let initrd = folder.join("initrd");
    let mut files = inputs(&init)?;
    if keep(&initrd, &files)? {
        // The states of former guests take a gigabyte together.
        let kept = folder.join(BOOTED);
        if kept.exists() {
            fs::remove_dir_all(&kept).context(|| format!("removing {}", kept.display()))?;
        }
    }
    let with_drivers = drivers_dir().exists().then(|| folder.join("initrd-drivers"));
    if let Some(initrd) = &with_drivers {
        files.extend(modules_in(&drivers_dir())?);
        keep(initrd, &files)?;
    }
    Ok(Guest { kernel, initrd, with_drivers })
}

fn drivers_dir() -> PathBuf {
    target_dir().join("guest").join("drivers")
}

/// Writes an initramfs, if there is none of these files. Whether one was written.
fn keep(initrd: &Path, files: &[(String, Vec<u8>)]) -> Result<bool> {
    let key_file = initrd.with_extension("key");
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    let key = format!("{:016x}", hasher.finish());
    if initrd.exists() && fs::read_to_string(&key_file).ok().as_ref() == Some(&key) {
        return Ok(false);
    }
    // Renamed into place, because a QEMU of another process may be reading the old one.
    let new = initrd.with_extension("new");
    fs::write(&new, archive(files)).context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, initrd).context(|| format!("replacing {}", initrd.display()))?;
    fs::write(&key_file, key).context(|| format!("writing {}", key_file.display()))?;
    Ok(true)
}

/// Builds the static init with the cargo that runs us, into a folder of its own.
fn build_init(folder: &Path) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace_dir())
        .args(["build", "--quiet", "--offline", "--package", "qferry-guest", "--bin", "qferry-guest"])
        .args(["--profile", "guest", "--target", TARGET, "--target-dir"])
        .arg(folder)
        // The encoded form has precedence over RUSTFLAGS and over anybody's cargo configuration.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static")
        .env_remove("CARGO_BUILD_RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER") // set by `cargo clippy`
        .env_remove("RUSTC_BOOTSTRAP") // set by scripts/timed
        .output()
        .context(|| "starting cargo to build the guest")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("building the guest: {}\n{}", output.status, said.trim())));
    }
    Ok(folder.join(TARGET).join("guest").join("qferry-guest"))
}

/// The files of the initramfs: the init, then the modules in their order.
fn inputs(init: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let content = fs::read(init).context(|| format!("reading {}", init.display()))?;
    let mut files = vec![("init".to_owned(), content)];
    files.extend(modules_in(&target_dir().join("guest"))?);
    Ok(files)
}

/// The modules in a folder, in their order.
fn modules_in(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let missing = || format!("no modules in {}: run scripts/setup", folder.display());
    let entries = fs::read_dir(folder).context(missing)?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "ko")).collect();
    if paths.is_empty() {
        return Err(Error::new(missing()));
    }
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = fs::read(&path).context(|| format!("reading {}", path.display()))?;
        Ok((format!("modules/{name}"), content))
    };
    paths.into_iter().map(read).collect()
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules"] {
        archive.directory(folder);
    }
    // Rust's start-up gives up without a /dev/null when its three descriptors are closed, as an init's may be.
    archive.device("dev/null", 1, 3);
    archive.device("dev/console", 5, 1);
    for (name, content) in files {
        archive.file(name, content);
    }
    archive.finish()
}
