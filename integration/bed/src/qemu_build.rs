//! A QEMU build under `target/qemu/VERSION`, as `scripts/qemu` brings it.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disk::Format;
use crate::error::{Context, Error, Result};

/// The programs of one QEMU version.
#[derive(Clone, Debug)]
pub struct Build {
    version: String,
    programs: PathBuf,
}

/// The folder of builds, kernel and scratch files: `$QFERRY_TARGET`, or else the workspace's `target`.
pub fn target_dir() -> PathBuf {
    match env::var_os("QFERRY_TARGET") {
        Some(folder) => PathBuf::from(folder),
        None => workspace_dir().join("target"),
    }
}

pub(crate) fn workspace_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map_or_else(PathBuf::new, Path::to_path_buf)
}

impl Build {
    /// Finds a version by the name it has under `target/qemu`, such as `10.0.13`, `7.2` or `11.1`.
    ///
    /// # Errors
    /// The version is missing.
    pub fn locate(version: &str) -> Result<Self> {
        let programs = target_dir().join("qemu").join(version).join("bin");
        if !programs.join("qemu-system-x86_64").exists() {
            return Err(Error::new(format!(
                "no QEMU {version} in {}: run scripts/setup, or scripts/qemu {version}",
                programs.display()
            )));
        }
        Ok(Self { version: version.to_owned(), programs })
    }

    /// The version, as asked for.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The machine type with this version's name, on which a pair of two versions can agree.
    pub(crate) fn machine(&self) -> String {
        let mut numbers = self.version.split('.');
        format!("pc-i440fx-{}.{}", numbers.next().unwrap_or_default(), numbers.next().unwrap_or("0"))
    }

    /// The SeaBIOS image, of a size that fits a flash.
    pub fn firmware(&self) -> PathBuf {
        self.programs.with_file_name("share").join("bios-256k.bin")
    }

    /// Runs `qemu-img` and returns its output.
    ///
    /// # Errors
    /// The program failed; the error has its words.
    pub fn img<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        self.run("qemu-img", arguments)
    }

    /// The major version.
    pub(crate) fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// Runs `qemu-io` on a qcow2 image, one command after the other.
    ///
    /// # Errors
    /// The program or one of the commands failed; the error has the program's words.
    pub fn io<'a>(&self, image: &Path, commands: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.io_on(image, Format::Qcow2, commands)
    }

    /// Runs `qemu-io` on an image of any format.
    ///
    /// # Errors
    /// The program or one of the commands failed; the error has the program's words.
    pub fn io_on<'a>(
        &self,
        image: &Path,
        format: Format,
        commands: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        let mut arguments = vec![OsStr::new("-f"), OsStr::new(format.name())];
        for command in commands {
            arguments.extend([OsStr::new("-c"), OsStr::new(command)]);
        }
        arguments.push(image.as_os_str());
        self.run("qemu-io", arguments)
    }

    fn run<A: AsRef<OsStr>>(&self, name: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let output =
            Command::new(self.program(name)).args(arguments).output().context(|| format!("starting {name}"))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::new(format!("{name}: {}: {} {}", output.status, said.trim(), printed.trim())));
        }
        Ok(printed.into_owned())
    }
}
