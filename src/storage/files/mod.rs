//! Image files on this host: their headers, `qemu-img`, file systems, and files that are copied from the source.

pub mod filesystem;
pub mod flush;
pub mod image;
pub mod layer_copy;
pub mod qemu_img;
pub mod rate_limit;
pub mod spent_images;
pub mod unpublished_file;
