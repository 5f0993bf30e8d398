//! The judgement of an image: read offline, block by block, against what the guest said it wrote.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use qferry_guest::Workload;
use qferry_guest::block::{self, SECTOR, Stamp};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::content::Content;
use crate::disk::{DiskFiles, DiskSpec, content};
use crate::error::{Context, Error, Result};
use crate::qemu_build::Build;
use crate::record::Slot;

/// The findings on a disk that is in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskCheck {
    /// Slots that hold the generation last acknowledged.
    pub acknowledged: u32,
    /// Slots that hold a later one, announced and not acknowledged.
    pub in_flight: u32,
    /// Slots among these that hold zeroes, because the guest gave them back.
    pub zeroed: u32,
    /// Slots that the guest never wrote, with their former content.
    pub untouched: u32,
    /// Bytes outside the slots with their former content, zeroes not counted.
    pub background: u64,
}

/// The number of faults that are told; the rest are only counted.
const TOLD: usize = 10;
/// The bytes that are read and compared at a time.
const CHUNK: u64 = 1 << 20;

/// Reads disk `number` from its top image, which nobody may have open for writing.
pub(crate) fn check(
    build: &Build,
    files: &DiskFiles,
    scratch: &Path,
    number: usize,
    disks: &[DiskSpec],
    workload: &Workload,
    said: &BTreeMap<u32, Slot>,
) -> Result<DiskCheck> {
    let size = disks.get(number).map_or(0, |disk| disk.size);
    let words = ["convert", "-f", files.format.name(), "-O", "raw"].map(AsRef::as_ref);
    build.img(words.into_iter().chain([files.overlay.as_os_str(), scratch.as_os_str()]))?;
    let image = File::open(scratch).context(|| format!("opening {}", scratch.display()))?;
    let judge = Judge { image, number, workload, said, before: content(disks, number) };
    let judged = judge.all(size);
    fs::remove_file(scratch).context(|| format!("removing {}", scratch.display()))?;
    let (found, faults) = judged?;
    if faults.is_empty() {
        return Ok(found);
    }
    let told = faults.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join("; ");
    Err(Error::new(format!("disk {number}: {} faults: {told}", faults.len())))
}

struct Judge<'a> {
    image: File,
    number: usize,
    workload: &'a Workload,
    said: &'a BTreeMap<u32, Slot>,
    /// The content of the disk before the guest wrote.
    before: Content,
}

/// The content that was found in a slot.
enum Found {
    Acknowledged,
    InFlight,
    /// The acknowledged generation, which is zeroes.
    Zeroed,
    Untouched,
    Wrong(String),
}

impl Judge<'_> {
    fn all(&self, size: u64) -> Result<(DiskCheck, Vec<String>)> {
        let (mut found, mut faults) = (DiskCheck::default(), Vec::new());
        let length = self.image.metadata().context(|| "the size of the image")?.len();
        if length != size {
            return Ok((found, vec![format!("it has {length} bytes and not {size}")]));
        }
        let slots = if self.said.is_empty() { 0 } else { self.workload.slots };
        for slot in 0..slots {
            match self.slot(slot)? {
                Found::Acknowledged => found.acknowledged += 1,
                Found::InFlight => found.in_flight += 1,
                Found::Zeroed => {
                    found.acknowledged += 1;
                    found.zeroed += 1;
                }
                Found::Untouched => found.untouched += 1,
                Found::Wrong(text) => faults.push(text),
            }
        }
        let starts: Vec<u64> = (0..slots).map(|slot| self.workload.offset(slot)).collect();
        let ends = starts.iter().map(|start| start + self.workload.block);
        let mut edges: Vec<u64> =
            starts.iter().copied().chain(ends).chain(self.before.edges()).chain([0, size]).collect();
        edges.sort_unstable();
        edges.dedup();
        for edge in edges.windows(2) {
            let &[start, end] = edge else { continue };
            if self.in_slot(&starts, start) || start >= size {
                continue;
            }
            let byte = self.before.at(start);
            faults.extend(self.constant(start, end.min(size), byte)?);
            if byte != 0 {
                found.background += end - start;
            }
        }
        Ok((found, faults))
    }

    fn in_slot(&self, starts: &[u64], offset: u64) -> bool {
        let after = starts.partition_point(|start| *start <= offset);
        after.checked_sub(1).and_then(|at| starts.get(at)).is_some_and(|start| offset < start + self.workload.block)
    }

    fn slot(&self, slot: u32) -> Result<Found> {
        let start = self.workload.offset(slot);
        let mut content = vec![0; usize::try_from(self.workload.block).context(|| "a block")?];
        self.image.read_exact_at(&mut content, start).context(|| format!("reading slot {slot}"))?;
        let nothing = Slot::default();
        let said = self.said.get(&slot).unwrap_or(&nothing);
        let legal = |generation: &u64| *generation == said.acknowledged || said.announced.contains(generation);
        let mut generations = Vec::new();
        for (sector, bytes) in (0..).zip(content.chunks(SECTOR)) {
            let expected = |generation| Stamp { disk: self.number, slot, sector, generation };
            match block::read(bytes) {
                Ok(stamp)
                    if stamp == expected(stamp.generation)
                        && legal(&stamp.generation)
                        && !said.zeroed.contains(&stamp.generation) =>
                {
                    generations.push(stamp.generation);
                }
                Err(block::Damage::Foreign) if said.acknowledged == 0 && self.is_as_before(bytes, start, sector) => {
                    generations.push(0);
                }
                Err(block::Damage::Foreign) if !said.zeroed.is_empty() && bytes.iter().all(|byte| *byte == 0) => {
                    generations.extend(said.zeroed.first());
                }
                other => {
                    return Ok(Found::Wrong(self.fault(
                        slot,
                        said,
                        &format!("sector {sector} holds {}", name(&other)),
                    )));
                }
            }
        }
        generations.dedup();
        Ok(match generations.as_slice() {
            [0] => Found::Untouched,
            [generation] if *generation == said.acknowledged && said.zeroed.contains(generation) => Found::Zeroed,
            [generation] if *generation == said.acknowledged => Found::Acknowledged,
            [_] => Found::InFlight,
            torn => Found::Wrong(self.fault(slot, said, &format!("it is torn between generations {torn:?}"))),
        })
    }

    fn is_as_before(&self, bytes: &[u8], start: u64, sector: u16) -> bool {
        let byte = self.before.at(start + u64::from(sector) * SECTOR as u64);
        bytes.iter().all(|found| *found == byte)
    }

    fn fault(&self, slot: u32, said: &Slot, found: &str) -> String {
        let Slot { acknowledged, announced, zeroed } = said;
        let offset = self.workload.offset(slot);
        format!(
            "slot {slot} at {offset}: acknowledged generation {acknowledged}, later announced {announced:?}, zeroes {zeroed:?}, but {found}"
        )
    }

    /// Compares a range with one byte; holes are taken for zeroes without being read.
    fn constant(&self, start: u64, end: u64, byte: u8) -> Result<Option<String>> {
        let mut at = start;
        while at < end {
            if byte == 0 {
                at = match seek(&self.image, SeekFrom::Data(at)) {
                    Ok(data) => data,
                    Err(Errno::NXIO) => end,
                    Err(error) => return Err(error).context(|| "looking for data"),
                };
                if at >= end {
                    break;
                }
            }
            let length = usize::try_from((end - at).min(CHUNK)).context(|| "a chunk")?;
            let mut content = vec![0; length];
            self.image.read_exact_at(&mut content, at).context(|| format!("reading at {at}"))?;
            if content != vec![byte; length] {
                let wrong = content.iter().position(|found| *found != byte).unwrap_or_default();
                let found = content.get(wrong).copied().unwrap_or_default();
                return Ok(Some(format!(
                    "at {}: {found:#04x} instead of {byte:#04x}, outside the slots",
                    at + wrong as u64
                )));
            }
            at += length as u64;
        }
        Ok(None)
    }
}

fn name(found: &std::result::Result<Stamp, block::Damage>) -> String {
    match found {
        Ok(stamp) => format!(
            "generation {} of disk {} slot {} sector {}",
            stamp.generation, stamp.disk, stamp.slot, stamp.sector
        ),
        Err(block::Damage::Foreign) => "nothing of the guest's".to_owned(),
        Err(block::Damage::Corrupt(stamp)) => format!("a damaged generation {}", stamp.generation),
    }
}
