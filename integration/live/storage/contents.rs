//! The contents of images: equal backing files, and empty images on the destination.

use super::{
    super::support::{MIB, start},
    KIB, anew, blocker, engine, found, img, layer, look, moves, note, overlay, quick, warning,
};
use qferry::internals::{
    migration::{Plan, Settings},
    storage::verify::identity::{self, ByteRange, ComparisonResult, ProofLevel, ProofMethod, SAMPLE},
};
use qferry_bed::{DetectZeroes, Deviation, DiskSpec, Format, Layer, Pair, Side};

/// The ranges of data in the small disk's backing file: 64 KiB in each of its 16 MiB.
fn data() -> Vec<ByteRange> {
    (0..16).map(|at| ByteRange { start: at * MIB, length: SAMPLE }).collect()
}

/// A sample of four of the sixteen ranges, always the same.
fn few(settings: &mut Settings) {
    (settings.samples, settings.sample_seed) = (4, Some(7));
}

fn by(proof: ProofLevel) -> impl Fn(&mut Settings) {
    move |settings| settings.verify_backing = proof
}

/// The offset of the difference that the only comparison found.
fn offset(plan: &Plan) -> u64 {
    match &plan.verified[..] {
        [one] => match one.verdict {
            ComparisonResult::Differ { offset, .. } => offset,
            _ => panic!("{one:?}"),
        },
        all => panic!("{all:?}"),
    }
}

#[test]
fn one_byte_that_differs_inside_the_sample_and_outside_of_it() {
    let mut pair = start(&quick([DiskSpec::small()]));
    let sample = identity::choose(&data(), 4, 7);
    let is_in = |range: &&ByteRange| sample.contains(range);
    let all = data();
    // A sampled range between the first and the last, which are always in the sample.
    let inside = all[1..15].iter().find(is_in).unwrap().start + 5;
    let outside = all.iter().find(|range| !is_in(range)).unwrap().start + 5;
    let differs = |pair: &Pair, offset: u64| {
        let (at_source, at_destination) = (layer(pair, Side::Source, 0, 0), layer(pair, Side::Destination, 0, 0));
        blocker("backing-differs", "disk0", [&at_source, &at_destination, &format!("differ at byte {offset}:")])
    };

    pair.deviate([Deviation::FlipByte { disk: 0, layer: 0, offset: inside }]).unwrap();
    let plan = look(&pair, few);
    found(&plan, [differs(&pair, inside)]);
    assert_eq!(offset(&plan), inside);
    assert_eq!(plan.verified[0].by, ProofMethod::Sample { seed: 7, ranges: 4, bytes: 4 * SAMPLE });
    found(&look(&pair, by(ProofLevel::Full)), [differs(&pair, inside)]);

    pair.deviate([Deviation::FlipByte { disk: 0, layer: 0, offset: outside }]).unwrap();
    let missed = look(&pair, few);
    found(&missed, []);
    assert_eq!(missed.verified[0].verdict, ComparisonResult::Same);
    // With as many samples as ranges no byte is missed.
    found(&look(&pair, |_| ()), [differs(&pair, outside)]);
    found(&look(&pair, by(ProofLevel::Full)), [differs(&pair, outside)]);
    // The sizes alone prove nothing, and the finding says so.
    let unverified = |what: &'static str| warning("backing-unverified", "disk0", [&what]);
    found(&look(&pair, by(ProofLevel::Metadata)), [unverified("no map of what is allocated")]);
    found(&look(&pair, by(ProofLevel::Off)), [unverified("nothing proves")]);

    // Data in a place where the source has none, so that no sample of the source's data would find it.
    let only_there = 5 * MIB + 512 * KIB;
    pair.deviate([Deviation::FlipByte { disk: 0, layer: 0, offset: only_there }]).unwrap();
    found(&look(&pair, few), [differs(&pair, only_there)]);
}

#[test]
fn the_layer_that_differs_is_named() {
    // The top layer's clusters hide the layers below everywhere but in these places.
    let places = [(0, 2 * MIB + 10_000), (1, 2 * MIB + 40_000), (2, 2 * MIB + 330_000), (3, 100_000)];
    let mut pair = start(&quick([DiskSpec::chain(layers_apart())]));
    for (number, offset) in places {
        pair.deviate([Deviation::FlipByte { disk: 0, layer: number, offset }]).unwrap();
        let (at_source, at_destination) =
            (layer(&pair, Side::Source, 0, number), layer(&pair, Side::Destination, 0, number));
        let differs = [blocker("backing-differs", "disk0", [&at_source, &at_destination, &format!("byte {offset}:")])];
        found(&look(&pair, by(ProofLevel::Full)), differs);
    }
}

/// Four layers, each of which shows parts of the layers below.
fn layers_apart() -> Vec<Layer> {
    let top = Layer { cluster: 64 * KIB, ..Layer::qcow2(14 * MIB, 64 * KIB) };
    vec![
        Layer::raw(16 * MIB, 4 * MIB),
        Layer { cluster: 4 * KIB, ..Layer::qcow2(12 * MIB, 3 * MIB) },
        Layer::qcow2(8 * MIB, 2 * MIB),
        top,
    ]
}

#[test]
fn maps_of_what_is_allocated() {
    let mut pair = start(&quick([DiskSpec::chain([Layer::qcow2(16 * MIB, MIB)])]));
    let plan = look(&pair, by(ProofLevel::Metadata));
    found(&plan, []);
    let map = |plan: &Plan| match &plan.verified[0].by {
        ProofMethod::Metadata { map } => map.clone().expect("qcow2 has one"),
        by => panic!("{by:?}"),
    };
    let before = map(&plan);
    // Data in a new cluster shows in the map; another byte in an allocated cluster does not.
    pair.deviate([Deviation::FlipByte { disk: 0, layer: 0, offset: 5 }]).unwrap();
    let plan = look(&pair, by(ProofLevel::Metadata));
    found(&plan, []);
    assert_eq!(map(&plan), before);
    pair.deviate([Deviation::FlipByte { disk: 0, layer: 0, offset: 512 * KIB }]).unwrap();
    let plan = look(&pair, by(ProofLevel::Metadata));
    found(&plan, [blocker("backing-differs", "disk0", [&(512 * KIB), &"the destination's image has data there"])]);
}

#[test]
fn sizes_and_formats_of_backing_files() {
    let mut pair = start(&quick([DiskSpec::small()]));
    anew(&mut pair, |pair| {
        let below = &pair.destination.disks()[0].layers[0];
        std::fs::File::options().write(true).open(below).unwrap().set_len(17 * MIB).unwrap();
    });
    let (at_source, at_destination) = (layer(&pair, Side::Source, 0, 0), layer(&pair, Side::Destination, 0, 0));
    for proof in [ProofLevel::Sample, ProofLevel::Full, ProofLevel::Metadata] {
        let plan = look(&pair, by(proof));
        found(&plan, [blocker("backing-size", "disk0", [&at_source, &at_destination, &"16 MiB", &"17 MiB"])]);
        assert!(plan.verified.is_empty(), "{plan:#?}");
    }

    // The same content in another format is equal.
    pair.deviate([]).unwrap();
    anew(&mut pair, |pair| {
        let (top, below) = (overlay(pair, Side::Destination, 0), layer(pair, Side::Destination, 0, 0));
        let other = format!("{below}.qcow2");
        img(pair, &[&"convert", &"-f", &"raw", &"-O", &"qcow2", &below, &other]);
        img(pair, &[&"rebase", &"-u", &"-F", &"qcow2", &"-b", &other, &top]);
    });
    for proof in [ProofLevel::Sample, ProofLevel::Full] {
        let plan = look(&pair, by(proof));
        found(&plan, [note("backing-format", "disk0", [&"raw", &"qcow2 with clusters of 64 KiB"])]);
        assert_eq!(plan.verified[0].verdict, ComparisonResult::Same);
    }
    let plan = look(&pair, by(ProofLevel::Metadata));
    assert!(plan.blockers().any(|finding| finding.code == "backing-differs"), "{plan:#?}");
}

#[test]
fn an_overlay_that_is_not_empty() {
    let mut pair = start(&quick([DiskSpec::small()]));
    let top = overlay(&pair, Side::Destination, 0).to_string();
    let last = 16 * MIB - 512;
    // QEMU's map has whole clusters.
    for (offset, told) in [(0, 0), (last, 16 * MIB - 64 * KIB)] {
        pair.deviate([Deviation::Data { disk: 0, offset, length: 512 }]).unwrap();
        for proof in [ProofLevel::Metadata, ProofLevel::Sample, ProofLevel::Full] {
            let plan = look(&pair, by(proof));
            let not_empty = blocker("overlay-not-empty", "disk0", [&top, &format!("at byte {told}")]);
            let unverified = warning("backing-unverified", "disk0", []);
            found(&plan, [not_empty].into_iter().chain((proof == ProofLevel::Metadata).then_some(unverified)));
        }
    }
    // A zero cluster hides the data below it.
    pair.deviate([]).unwrap();
    anew(&mut pair, |pair| {
        let files = &pair.destination.disks()[0];
        pair.build(Side::Destination).io(&files.overlay, ["write -q -z 3M 64k"]).unwrap();
    });
    found(&look(&pair, |_| ()), [blocker("overlay-not-empty", "disk0", [&top, &(3 * MIB)])]);
    // Nobody can force it either.
    let forced = engine(&pair, |settings| settings.force = ["overlay-not-empty".to_owned()].into());
    assert_eq!(forced.validate().unwrap_err().problems[0].field, "force");
}

#[test]
fn an_image_that_holds_data_is_written_over_where_the_user_says_so() {
    for top in [Format::Qcow2, Format::Raw] {
        // Without `discard` QEMU 10.0 writes the zeros as well: the content is equal, but the image is less sparse.
        let disk = DiskSpec { discard: true, detect_zeroes: DetectZeroes::Unmap, ..DiskSpec::alone(top, 16 * MIB) };
        let mut pair = start(&quick([disk]));
        pair.deviate([Deviation::Data { disk: 0, offset: 512 * KIB, length: 64 * KIB }]).unwrap();
        let file = overlay(&pair, Side::Destination, 0).to_string();
        let holds = || [&file as &dyn std::fmt::Display, &"would be overwritten"];
        let sparse = || (top == Format::Raw).then(|| note("disk-not-sparse", "disk0", []));
        let plan = look(&pair, |_| ());
        found(&plan, [blocker("destination-holds-data", "disk0", holds())].into_iter().chain(sparse()));
        assert_eq!((plan.disks[0].mode, plan.verified.len()), ("full", 0));
        let force = |settings: &mut Settings| settings.force = ["destination-holds-data".to_owned()].into();
        let forced = warning("destination-holds-data", "disk0", [&"forced although", &file]);
        found(&look(&pair, force), [forced].into_iter().chain(sparse()));
        moves(&pair, force);
    }
}

#[test]
fn two_disks_over_one_base_are_compared_once() {
    let mut pair = start(&quick([DiskSpec::small(), DiskSpec::beside(0)]));
    let plan = look(&pair, by(ProofLevel::Full));
    found(&plan, []);
    assert_eq!(plan.verified.len(), 1, "{plan:#?}");
    assert_eq!(plan.verified[0].disks, ["disk0", "disk1"]);
    pair.deviate([Deviation::FlipByte { disk: 0, layer: 0, offset: 5 }]).unwrap();
    found(&look(&pair, |_| ()), [blocker("backing-differs", "disk0, disk1", [&"byte 5:"])]);
}
