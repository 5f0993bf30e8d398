//! Calls of `qemu-img`.
//!
//! `qemu-img` must never run through a shell, and never open an image for writing that this process did not make. A
//! running `qemu-img` is killed when its caller stops waiting.

use super::image::{ExistingImage, ImageInfo, MapEntry, NewImage, alone};
use serde::de::DeserializeOwned;
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
};
use thiserror::Error;
use tokio::{process::Command, task::spawn_blocking};

/// The most data of a raw file that is read to see whether the data is zeros, bytes: `qemu-img create` itself writes a
/// block of zeros.
const ZEROS: u64 = 1 << 20;

/// Why `qemu-img` failed.
#[derive(Debug, Error)]
pub enum QemuImgError {
    /// The program could not be started.
    #[error("cannot run {program}: is it installed, or somewhere else than in PATH (see `qemu_img`)?")]
    Missing {
        /// The program.
        program: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The program exited with an error.
    #[error("{command} failed: {said}")]
    Failed {
        /// The command, such as `qemu-img create`.
        command: String,
        /// The error text that the program printed.
        said: String,
    },
    /// The output cannot be parsed.
    #[error("cannot read what {command} printed")]
    Answer {
        /// The command, such as `qemu-img info`.
        command: String,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

/// The program `qemu-img`.
#[derive(Debug, Clone)]
pub struct QemuImg(PathBuf);

impl QemuImg {
    /// The program at a path, or of a name in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self(program.into())
    }

    /// The path or name of the program.
    pub fn program(&self) -> &Path {
        &self.0
    }

    /// Runs the program with these arguments and returns its output. The program is killed when the future is dropped.
    ///
    /// # Errors
    /// See [`QemuImgError`].
    pub async fn run(&self, arguments: &[OsString]) -> Result<Vec<u8>, QemuImgError> {
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        // Error texts are shown to people and never parsed, so the locale of the program does not matter.
        let output = command.output().await.map_err(|source| {
            let program = self.0.display().to_string();
            QemuImgError::Missing { program, source }
        })?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let said = said.strip_prefix("qemu-img: ").map(str::to_owned).unwrap_or(said);
                let said = if said.is_empty() { output.status.to_string() } else { said };
                Err(QemuImgError::Failed { command: named(arguments), said })
            }
        }
    }

    /// Reads the header of an image, which may be in use.
    ///
    /// # Errors
    /// The file is no image or cannot be read; see [`QemuImgError`].
    pub async fn info(&self, path: &Path) -> Result<ImageInfo, QemuImgError> {
        self.ask("info", path.as_os_str()).await
    }

    /// Reads the header of an image, which may be in use, and how much data its own layer has.
    ///
    /// # Errors
    /// As [`QemuImg::info`].
    pub async fn look(&self, path: &Path) -> Result<ExistingImage, QemuImgError> {
        let info = self.info(path).await?;
        let format = info.format.clone();
        let map: Vec<MapEntry> = match format.as_str() {
            "qcow2" | "raw" => self.ask("map", OsStr::new(&alone(path, &format))).await?,
            // No image of another format is ever accepted, so its data does not matter.
            _ => Vec::new(),
        };
        let mut taken: Vec<MapEntry> = map.into_iter().filter(|range| range.is_taken(&format)).collect();
        if format == "raw" && taken.iter().map(|range| range.length).sum::<u64>() <= ZEROS {
            let path = path.to_owned();
            let zeros = spawn_blocking(move || are_zeros(&path, &taken).map(|zeros| (zeros, taken))).await;
            taken = match zeros {
                Ok(Ok((true, _))) => Vec::new(),
                Ok(Ok((false, taken))) => taken,
                // A file that cannot be read counts as full.
                _ => vec![MapEntry { start: 0, length: info.virtual_size, depth: 0, present: true, data: true }],
            };
        }
        Ok(ExistingImage { data: taken.iter().map(|range| range.length).sum(), info })
    }

    /// Requires that no process has an image open for writing.
    ///
    /// # Errors
    /// A process has; see [`QemuImgError`].
    pub async fn is_free(&self, path: &Path) -> Result<(), QemuImgError> {
        self.run(&["info".into(), path.into()]).await.map(drop)
    }

    /// Creates an image over the empty file at `path`, which the caller must own.
    ///
    /// # Errors
    /// See [`QemuImgError`].
    pub async fn create(&self, image: &NewImage, path: &Path) -> Result<(), QemuImgError> {
        self.run(&image.create(path)).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(&self, verb: &str, image: &OsStr) -> Result<T, QemuImgError> {
        let arguments = [verb.into(), "-U".into(), "--output=json".into(), image.to_owned()];
        let printed = self.run(&arguments).await?;
        serde_json::from_slice(&printed).map_err(|source| QemuImgError::Answer { command: named(&arguments), source })
    }
}

fn named(arguments: &[OsString]) -> String {
    format!("qemu-img {}", arguments.first().map(|verb| verb.to_string_lossy()).unwrap_or_default())
}

fn are_zeros(path: &Path, ranges: &[MapEntry]) -> io::Result<bool> {
    let file = File::open(path)?;
    for range in ranges {
        let mut buffer = vec![0; usize::try_from(range.length).unwrap_or(0)];
        file.read_exact_at(&mut buffer, range.start)?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
