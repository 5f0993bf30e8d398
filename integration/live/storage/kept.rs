//! Digests that are kept beside images, and the conditions under which the engine trusts them.

use super::{
    super::support::{MIB, start},
    State, anew, blocker, engine, found, img, layer, look, note, overlay, quick,
};
use qferry::internals::{
    migration::{Plan, Settings},
    storage::verify::identity::{ProofLevel, ProofMethod, kept_path},
};
use qferry_bed::{DiskSpec, Layer, Pair, Side};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

fn full(settings: &mut Settings) {
    settings.verify_backing = ProofLevel::Full;
}

fn keeping(settings: &mut Settings) {
    full(settings);
    settings.keep_digests = true;
}

/// The file with the digest of a side's backing file.
fn sidecar(pair: &Pair, side: Side) -> PathBuf {
    kept_path(&pair.machine(side).disks()[0].backing().unwrap().to_string_lossy()).into()
}

/// Plans with digests kept, which changes nothing else.
fn keep(pair: &Pair) -> Plan {
    let sidecars = [Side::Source, Side::Destination].map(|side| sidecar(pair, side));
    let mut before = State::of(pair);
    let plan = engine(pair, keeping).check().unwrap().wait_blocking().unwrap();
    let mut after = State::of(pair);
    for path in &sidecars {
        before.files.remove(path);
        assert!(after.files.remove(path).is_some(), "{} is kept", path.display());
    }
    assert_eq!(after.files, before.files);
    for (mut after, mut before) in after.sides.into_iter().zip(before.sides) {
        // The entry `more` has the file with the digest, too.
        after.remove("more");
        before.remove("more");
        assert_eq!(after, before);
    }
    plan
}

/// The digest, the bytes read, and the number of sides whose kept digest was trusted.
fn proof(plan: &Plan) -> (String, u64, usize) {
    match &plan.verified[..] {
        [one] => match &one.by {
            ProofMethod::Full { digest: Some(digest), bytes, kept } => (digest.clone(), *bytes, *kept),
            by => panic!("{by:?}"),
        },
        all => panic!("{all:?}"),
    }
}

#[test]
fn a_kept_digest_spares_reading_for_as_long_as_no_layer_changes() {
    let chain = DiskSpec::chain([Layer::raw(16 * MIB, 4 * MIB), Layer::qcow2(16 * MIB, MIB)]);
    let mut pair = start(&quick([chain]));
    let plan = look(&pair, full);
    assert!(!sidecar(&pair, Side::Source).exists(), "it was not asked for");
    let (digest, all, kept) = proof(&plan);
    assert!(all >= 8 * MIB && kept == 0, "{all} {kept}");
    assert_eq!(proof(&keep(&pair)), (digest.clone(), all, 0));
    // Nothing is read, whether digests are to be kept or not.
    assert_eq!(proof(&look(&pair, full)), (digest.clone(), 0, 2));

    // The default proves as much where both digests are kept, and as much as before where one of them is not.
    assert_eq!(proof(&look(&pair, |_| ())), (digest.clone(), 0, 2));

    // A changed timestamp of one side's lowest layer: only that side is read, and its digest kept again.
    let lowest = pair.destination.disks()[0].layers[0].clone();
    let touch = || {
        let later = SystemTime::now() + Duration::from_secs(1);
        File::options().write(true).open(&lowest).unwrap().set_modified(later).unwrap();
    };
    touch();
    let plan = look(&pair, |_| ());
    assert!(matches!(plan.verified[0].by, ProofMethod::Sample { ranges: 1.., .. }), "{:?}", plan.verified);
    let plan = look(&pair, full);
    found(&plan, []);
    assert_eq!(proof(&plan), (digest.clone(), all / 2, 1));
    keep(&pair);
    assert_eq!(proof(&look(&pair, full)), (digest.clone(), 0, 2));

    // A changed byte is found and its offset named, although the source's digest was trusted.
    let byte = |at, byte: u8| File::options().write(true).open(&lowest).unwrap().write_at(&[byte], at).unwrap();
    let mut was = [0];
    File::open(&lowest).unwrap().read_exact_at(&mut was, 300_000).unwrap();
    pair.destination.kill().unwrap();
    byte(300_000, !was[0]);
    pair.restart_destination(false).unwrap();
    let plan = look(&pair, full);
    found(&plan, [blocker("backing-differs", "disk0", [&lowest.display(), &"byte 300000:"])]);
    // The kept digest of the former content is not trusted.
    let kept_there = sidecar(&pair, Side::Destination);
    assert!(fs::read_to_string(&kept_there).unwrap().contains(&digest));

    // A forged digest for the present file: the digests differ, both files are read, and found to differ.
    byte(300_000, was[0]);
    keep(&pair);
    let lie = fs::read_to_string(&kept_there).unwrap().replace(&digest, &"0".repeat(digest.len()));
    fs::write(&kept_there, lie).unwrap();
    let plan = look(&pair, full);
    found(&plan, []);
    assert_eq!(proof(&plan), (digest.clone(), all, 0));
    // Digest files with nonsense, and one of another algorithm.
    for text in ["{}", "", "\u{0}", &fs::read_to_string(sidecar(&pair, Side::Source)).unwrap().replace("blake3", "crc")]
    {
        fs::write(&kept_there, text).unwrap();
        assert_eq!(proof(&look(&pair, full)), (digest.clone(), all / 2, 1), "{text}");
    }
}

/// The content of a qcow2 data file can change while the image's own file stays the same.
#[test]
fn no_digest_is_kept_of_an_image_whose_data_is_elsewhere() {
    let mut pair = start(&quick([DiskSpec::small()]));
    anew(&mut pair, |pair| {
        let (top, below) = (overlay(pair, Side::Destination, 0), layer(pair, Side::Destination, 0, 0));
        let (other, data) = (format!("{below}.qcow2"), format!("data_file={below}.data"));
        img(pair, &[&"convert", &"-f", &"raw", &"-O", &"qcow2", &"-o", &data, &below, &other]);
        img(pair, &[&"rebase", &"-u", &"-F", &"qcow2", &"-b", &other, &top]);
    });
    let format = || note("backing-format", "disk0", []);
    let plan = engine(&pair, keeping).check().unwrap().wait_blocking().unwrap();
    found(&plan, [format()]);
    let (digest, all, _) = proof(&plan);
    assert!(sidecar(&pair, Side::Source).exists());
    let below = layer(&pair, Side::Destination, 0, 0).to_string();
    assert!(!Path::new(&kept_path(&format!("{below}.qcow2"))).exists());
    assert_eq!(proof(&look(&pair, full)), (digest, all / 2, 1), "the destination's is read each time");
}
