//! The disks of both sides next to each other, layer by layer.

use crate::{
    migration::{Chains, Plan},
    quantity::Bytes,
    storage::{
        model::chain::{BackingChain, Layer},
        verify::identity::{Comparison, ComparisonResult, ProofMethod},
    },
};

/// What stands before the source's column.
const INDENT: &str = "         ";

/// All disks of a plan.
pub(super) fn tree(plan: &Plan) -> String {
    let mut text = String::new();
    for chains in &plan.chains {
        let how = match chains.mode {
            "none" => "not copied".to_owned(),
            mode => {
                let planned = plan.disks.iter().find(|disk| disk.source == chains.disk);
                let about = planned.and_then(|disk| disk.actual_size);
                about.map_or_else(|| mode.to_owned(), |bytes| format!("{mode}, about {} to copy", Bytes(bytes)))
            }
        };
        let target = plan.disks.iter().find(|disk| disk.source == chains.disk).map(|disk| &disk.destination);
        let arrow = target.map_or_else(String::new, |to| format!(" -> {to}"));
        line(&mut text, &format!("disk     {}{arrow}: {how}", chains.disk));
        columns(&mut text, chains);
        for comparison in plan.verified.iter().filter(|comparison| comparison.disks.contains(&chains.disk)) {
            line(&mut text, &format!("{INDENT}{}", proof(comparison)));
        }
    }
    text
}

fn line(text: &mut String, words: &str) {
    text.push_str(words.trim_end());
    text.push('\n');
}

fn columns(text: &mut String, chains: &Chains) {
    let nothing = BackingChain::default();
    let (source, destination) = (lines(&chains.source), lines(chains.destination.as_ref().unwrap_or(&nothing)));
    let width = source.iter().map(|line| line.chars().count()).max().unwrap_or(0).max("source".len());
    line(text, &format!("{INDENT}{:<width$}  destination", "source"));
    for at in 0..source.len().max(destination.len()) {
        let part = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
        line(text, &format!("{INDENT}{:<width$}  {}", part(&source), part(&destination)));
    }
}

/// One side: each layer's file, and below it what it is.
fn lines(chain: &BackingChain) -> Vec<String> {
    let mut lines = Vec::new();
    for (depth, layer) in chain.layers.iter().enumerate() {
        let indent = "   ".repeat(depth.saturating_sub(1));
        let branch = if depth == 0 { "" } else { "└─ " };
        for filter in chain.filters.iter().filter(|filter| filter.above == depth) {
            lines.push(format!("{indent}{branch}({} {})", filter.driver, filter.node));
        }
        lines.push(format!("{indent}{branch}{}", layer.file));
        lines.push(format!("{indent}{}{}", if depth == 0 { "" } else { "   " }, about(layer)));
    }
    lines
}

fn about(layer: &Layer) -> String {
    let mut words = vec![format!("{} {}", layer.format, Bytes(layer.virtual_size))];
    words.extend(layer.actual_size.map(|bytes| format!("{} in use", Bytes(bytes))));
    words.extend(layer.cluster_size.map(|bytes| format!("clusters of {}", Bytes(bytes))));
    words.extend(layer.qcow2.as_ref().filter(|qcow2| qcow2.compat == "0.10").map(|_| "version 2".to_owned()));
    words.extend(layer.data_file.as_ref().map(|file| format!("data in {file}")));
    words.extend(layer.encrypted.then(|| "encrypted".to_owned()));
    words.extend(layer.read_only.then(|| "read-only".to_owned()));
    words.extend((layer.shared == Some(true)).then(|| "shared".to_owned()));
    let names: Vec<&str> = layer.bitmaps.iter().map(|bitmap| bitmap.name.as_str()).collect();
    words.extend((!names.is_empty()).then(|| format!("bitmaps {}", names.join(" "))));
    words.join(", ")
}

fn proof(comparison: &Comparison) -> String {
    let how = match &comparison.by {
        ProofMethod::SameFile => "one and the same file".to_owned(),
        ProofMethod::Metadata { map: Some(_) } => "data in the same places".to_owned(),
        ProofMethod::Metadata { map: None } => "the same sizes and formats".to_owned(),
        ProofMethod::Sample { ranges: 0, .. } => "both are zero throughout".to_owned(),
        ProofMethod::Sample { seed, ranges, bytes } => {
            format!("{ranges} ranges, {} on each side, seed {seed}", Bytes(*bytes))
        }
        ProofMethod::Full { digest, kept, .. } => {
            format!("every byte, digest {}{}", digest.as_deref().unwrap_or("-"), if *kept > 0 { " (kept)" } else { "" })
        }
    };
    match &comparison.verdict {
        ComparisonResult::Same => format!("= the same: {how}"),
        ComparisonResult::Differ { offset, .. } => format!("! they differ at byte {offset}"),
        ComparisonResult::Unproved { why } => format!("? not compared: {why}"),
    }
}
