//! Images that the destination needs: how to create one, and whether an existing image is that one and still empty.
//!
//! Pure. The arguments of `qemu-img`, and its output.

use crate::{
    qemu::reply::FormatSpecific,
    quantity::Bytes,
    storage::model::chain::{Layer, Qcow2},
};
use serde::Deserialize;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// An image to be created, without data of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// `qcow2` or `raw`.
    pub format: String,
    /// The size that the guest sees, bytes.
    pub size: u64,
    /// The backing file.
    pub backing: Option<BackingFile>,
    /// The cluster size, bytes.
    pub cluster_size: Option<u64>,
    /// The other properties of a qcow2 image.
    pub qcow2: Option<Qcow2>,
}

/// The backing file of an image, as the header is to name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingFile {
    /// The path, or QEMU's name if the backing image is no file.
    pub file: String,
    /// The format.
    pub format: String,
}

/// Why no image like an existing layer can be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnsupportedImage {
    /// The layer's format is neither qcow2 nor raw.
    Format(String),
    /// The layer is encrypted, and its secret is unknown here.
    Encrypted,
    /// The layer has an external data file.
    DataFile(String),
}

impl NewImage {
    /// An image with the format, size and properties of a layer, over `backing`.
    ///
    /// # Errors
    /// See [`UnsupportedImage`].
    pub fn like(layer: &Layer, backing: Option<BackingFile>) -> Result<Self, UnsupportedImage> {
        if layer.encrypted || layer.format == "luks" {
            return Err(UnsupportedImage::Encrypted);
        }
        if let Some(file) = &layer.data_file {
            return Err(UnsupportedImage::DataFile(file.clone()));
        }
        if !["qcow2", "raw"].contains(&layer.format.as_str()) {
            return Err(UnsupportedImage::Format(layer.format.clone()));
        }
        let qcow2 = layer.qcow2.clone().filter(|_| layer.format == "qcow2").map(|mut qcow2| {
            // An overlay of version 2 has no zero clusters, so zeros could not hide data of the backing file.
            "1.1".clone_into(&mut qcow2.compat);
            qcow2
        });
        let cluster_size = layer.cluster_size.filter(|_| layer.format == "qcow2");
        Ok(Self { format: layer.format.clone(), size: layer.virtual_size, backing, cluster_size, qcow2 })
    }

    /// The arguments for `qemu-img` to create the image at `path`. The path must be absolute: `qemu-img` could read a
    /// relative one as a protocol or an option.
    pub fn create(&self, path: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["create", "-q", "-f", &self.format].map(OsString::from).into();
        if let Some(backing) = &self.backing {
            words.extend(["-F", &backing.format, "-b", &backing.file].map(OsString::from));
        }
        let options = self.options();
        if !options.is_empty() {
            words.extend(["-o".into(), options.join(",").into()]);
        }
        words.extend([path.into(), self.size.to_string().into()]);
        words
    }

    fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = self.cluster_size.iter().map(|size| format!("cluster_size={size}")).collect();
        let Some(qcow2) = &self.qcow2 else { return options };
        options.push(format!("compat={}", qcow2.compat));
        if qcow2.extended_l2 {
            options.push("extended_l2=on".to_owned());
        }
        if qcow2.lazy_refcounts {
            options.push("lazy_refcounts=on".to_owned());
        }
        if qcow2.refcount_bits != 16 {
            options.push(format!("refcount_bits={}", qcow2.refcount_bits));
        }
        if let Some(kind) = qcow2.compression_type.as_deref().filter(|kind| *kind != "zlib") {
            options.push(format!("compression_type={kind}"));
        }
        options
    }

    /// The reason why an existing image is not this one, or is not empty; `None` if the existing image can be used.
    pub fn misfit(&self, found: &ExistingImage) -> Option<String> {
        let info = &found.info;
        if info.format != self.format {
            return Some(format!("its format is {}, not {}", info.format, self.format));
        }
        if info.virtual_size != self.size {
            let (size, needed) = (Bytes(info.virtual_size).exactly(), Bytes(self.size).exactly());
            return Some(format!("it has {size}, not {needed}"));
        }
        if let Some(wrong) = self.other_backing(info) {
            return Some(wrong);
        }
        if self.format == "qcow2" && info.cluster_size != self.cluster_size {
            let size = |size: Option<u64>| size.map_or_else(|| "unknown".to_owned(), |size| Bytes(size).to_string());
            return Some(format!(
                "the size of its clusters is {}, not {}",
                size(info.cluster_size),
                size(self.cluster_size)
            ));
        }
        if let Some(data) = info.format_specific.as_ref().map(|specific| &specific.data) {
            if let Some(file) = &data.data_file {
                return Some(format!("its data is in another file, {file}"));
            }
            if data.compat.as_deref() == Some("0.10") && self.backing.is_some() {
                return Some(
                    "it is of qcow2 version 2, in which an overlay cannot hide data of its backing file behind zeros"
                        .to_owned(),
                );
            }
            if !data.bitmaps.is_empty() {
                return Some("it has bitmaps".to_owned());
            }
        }
        if !info.snapshots.is_empty() {
            return Some("it has snapshots".to_owned());
        }
        (found.data > 0).then(|| format!("it holds data: at least {}", Bytes(found.data)))
    }

    fn other_backing(&self, info: &ImageInfo) -> Option<String> {
        match (&self.backing, info.backing()) {
            (None, None) => None,
            (None, Some(file)) => Some(format!("it has the backing file {file}")),
            (Some(wanted), None) => Some(format!("it has no backing file, but needs {}", wanted.file)),
            (Some(wanted), Some(file)) => {
                let same = file == wanted.file || Path::new(file).components().eq(Path::new(&wanted.file).components());
                let format = info.backing_filename_format.as_deref();
                match same {
                    false => Some(format!("its backing file is {file}, not {}", wanted.file)),
                    true if format == Some(&wanted.format) => None,
                    true => Some(format!(
                        "its header gives its backing file the format {}, not {}",
                        format.unwrap_or("unknown"),
                        wanted.format
                    )),
                }
            }
        }
    }
}

/// An existing image.
#[derive(Debug, Clone, Default)]
pub struct ExistingImage {
    /// The header.
    pub info: ImageInfo,
    /// The bytes for which the image's own layer has clusters or data, without the zeros of a new raw file.
    pub data: u64,
}

/// The output of `qemu-img info`. Sizes in bytes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ImageInfo {
    /// The format, as `qemu-img` detected it.
    pub format: String,
    /// The size that the guest sees.
    pub virtual_size: u64,
    /// The cluster size.
    pub cluster_size: Option<u64>,
    /// The backing file as the header names it.
    pub backing_filename: Option<String>,
    /// The backing file as an absolute path.
    pub full_backing_filename: Option<String>,
    /// The format of the backing file, where the header gives one.
    pub backing_filename_format: Option<String>,
    /// The properties that only this format has.
    pub format_specific: Option<FormatSpecific>,
    /// The internal snapshots.
    pub snapshots: Vec<serde_json::Value>,
}

impl ImageInfo {
    /// The backing file, absolute where `qemu-img` resolved the name.
    pub fn backing(&self) -> Option<&str> {
        self.full_backing_filename.as_deref().or(self.backing_filename.as_deref())
    }
}

/// A range in the output of `qemu-img map`, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MapEntry {
    /// The first byte.
    pub start: u64,
    /// The length.
    pub length: u64,
    /// The layer that provides the range; 0 is the image itself.
    #[serde(default)]
    pub depth: u64,
    /// Whether any layer has allocated the range, be it as zeros.
    #[serde(default = "yes")]
    pub present: bool,
    /// Whether the range holds data.
    #[serde(default = "yes")]
    pub data: bool,
}

fn yes() -> bool {
    true
}

impl MapEntry {
    /// Whether the image's own layer has allocated the range. A raw image allocates everything, so there only data
    /// counts.
    pub fn is_taken(&self, format: &str) -> bool {
        self.depth == 0 && (self.data || (self.present && format != "raw"))
    }
}

/// The name under which `qemu-img` opens an image without its backing files.
pub fn alone(path: &Path, format: &str) -> String {
    let file = serde_json::json!({ "driver": "file", "filename": path.to_string_lossy() });
    let mut image = serde_json::json!({ "driver": format, "file": file });
    if format != "raw" {
        image["backing"] = serde_json::Value::Null;
    }
    format!("json:{image}")
}

/// The arguments for `qemu-img` to write another backing file into a header, without touching data.
pub fn rebase(path: &Path, format: &str, backing: &BackingFile) -> Vec<OsString> {
    let words = ["rebase", "-q", "-u", "-f", format, "-F", &backing.format, "-b", &backing.file];
    words.map(OsString::from).into_iter().chain([path.into()]).collect()
}

/// Whether the backing file `written` in the header of the file at `path` is the file `wanted`.
pub fn names(path: &Path, written: Option<&str>, wanted: &str) -> bool {
    let Some(written) = written else { return false };
    let resolve = |name: &str| crate::storage::model::path_map::path_of(name, path.parent());
    written == wanted || resolve(written).is_some_and(|found: PathBuf| Some(found) == resolve(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(format: &str) -> Layer {
        let qcow2 = Qcow2 { compat: "1.1".to_owned(), refcount_bits: 16, ..Qcow2::default() };
        Layer {
            format: format.to_owned(),
            virtual_size: 1 << 20,
            cluster_size: Some(65536).filter(|_| format == "qcow2"),
            qcow2: Some(qcow2).filter(|_| format == "qcow2"),
            ..Layer::default()
        }
    }

    fn backing() -> BackingFile {
        BackingFile { file: "/b/a,b ' c:d.raw".to_owned(), format: "raw".to_owned() }
    }

    fn created(image: &NewImage) -> String {
        image.create(Path::new("/t")).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn what_qemu_img_is_told() {
        let plain = NewImage::like(&layer("qcow2"), Some(backing())).expect("qcow2");
        let expected = "create|-q|-f|qcow2|-F|raw|-b|/b/a,b ' c:d.raw|-o|cluster_size=65536,compat=1.1|/t|1048576";
        assert_eq!(created(&plain), expected);
        let mut rich = layer("qcow2");
        rich.qcow2 = Some(Qcow2 {
            compat: "0.10".to_owned(),
            lazy_refcounts: true,
            refcount_bits: 64,
            extended_l2: true,
            compression_type: Some("zstd".to_owned()),
            data_file_raw: false,
        });
        let options =
            "cluster_size=65536,compat=1.1,extended_l2=on,lazy_refcounts=on,refcount_bits=64,compression_type=zstd";
        let rich = NewImage::like(&rich, None).expect("qcow2");
        assert_eq!(created(&rich), format!("create|-q|-f|qcow2|-o|{options}|/t|1048576"));
        assert_eq!(created(&NewImage::like(&layer("raw"), None).expect("raw")), "create|-q|-f|raw|/t|1048576");
    }

    #[test]
    fn what_cannot_be_made_is_told() {
        assert_eq!(NewImage::like(&layer("vmdk"), None), Err(UnsupportedImage::Format("vmdk".to_owned())));
        let encrypted = Layer { encrypted: true, ..layer("qcow2") };
        assert_eq!(NewImage::like(&encrypted, None), Err(UnsupportedImage::Encrypted));
        let elsewhere = Layer { data_file: Some("/d".to_owned()), ..layer("qcow2") };
        assert_eq!(NewImage::like(&elsewhere, None), Err(UnsupportedImage::DataFile("/d".to_owned())));
    }

    fn existing(info: serde_json::Value, data: u64) -> ExistingImage {
        ExistingImage { info: serde_json::from_value(info).expect("an info"), data }
    }

    #[test]
    fn only_an_empty_image_of_the_same_shape_fits() {
        let image = NewImage::like(&layer("qcow2"), Some(backing())).expect("qcow2");
        let fitting = serde_json::json!({
            "format": "qcow2", "virtual-size": 1 << 20, "cluster-size": 65536,
            "backing-filename": "a,b ' c:d.raw", "full-backing-filename": "/b//a,b ' c:d.raw",
            "backing-filename-format": "raw",
            "format-specific": { "type": "qcow2", "data": { "compat": "1.1" } },
        });
        assert_eq!(image.misfit(&existing(fitting.clone(), 0)), None);
        assert!(image.misfit(&existing(fitting.clone(), 512)).is_some_and(|why| why.contains("holds data")));
        for (key, value, word) in [
            ("format", serde_json::json!("raw"), "format"),
            ("virtual-size", serde_json::json!(512), "512 B"),
            ("cluster-size", serde_json::json!(512), "clusters"),
            ("full-backing-filename", serde_json::json!("/other"), "/other"),
            ("backing-filename-format", serde_json::Value::Null, "unknown"),
            ("snapshots", serde_json::json!([{ "id": "1" }]), "snapshots"),
            ("format-specific", serde_json::json!({ "data": { "compat": "0.10" } }), "version 2"),
            ("format-specific", serde_json::json!({ "data": { "data-file": "/d" } }), "/d"),
            (
                "format-specific",
                serde_json::json!({ "data": { "bitmaps": [{ "name": "b", "granularity": 1 }] } }),
                "bitmaps",
            ),
        ] {
            let mut info = fitting.clone();
            info[key] = value;
            let why = image.misfit(&existing(info, 0)).unwrap_or_default();
            assert!(why.contains(word), "{key}: {why}");
        }
        let alone = NewImage { backing: None, ..image };
        assert!(alone.misfit(&existing(fitting, 0)).is_some_and(|why| why.contains("backing file")));
    }

    #[test]
    fn zeros_hide_what_is_below_and_holes_of_a_raw_file_hide_nothing() {
        let read = |text: &str| serde_json::from_str::<MapEntry>(text).expect("a range");
        for (text, qcow2, raw) in [
            (r#"{"start":0,"length":1,"depth":0,"present":false,"zero":true,"data":false}"#, false, false),
            (r#"{"start":0,"length":1,"depth":0,"present":true,"zero":true,"data":false}"#, true, false),
            (r#"{"start":0,"length":1,"depth":0,"present":true,"zero":false,"data":true}"#, true, true),
            (r#"{"start":0,"length":1,"depth":1,"present":true,"zero":false,"data":true}"#, false, false),
            (r#"{"start":0,"length":1}"#, true, true),
        ] {
            assert_eq!((read(text).is_taken("qcow2"), read(text).is_taken("raw")), (qcow2, raw), "{text}");
        }
    }

    #[test]
    fn a_relative_name_is_meant_from_where_the_image_is() {
        for (written, wanted, same) in [
            (Some("base"), "/d/base", true),
            (Some("/d/base"), "/d/base", true),
            (Some("base"), "/e/base", false),
            (Some("nbd://h/x"), "nbd://h/x", true),
            (None, "/d/base", false),
        ] {
            assert_eq!(names(Path::new("/d/top"), written, wanted), same, "{written:?}");
        }
    }
}
