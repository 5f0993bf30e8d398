//! Pages of RAM of another size.

use super::CheckedWorld;
use crate::codes::FindingCode;

#[test]
fn postcopy_wants_pages_of_one_size_on_both_sides() {
    for (page, words) in [(4096, None), (2 << 20, Some("pc.ram has pages of 2 MiB on the destination and of 4 KiB"))] {
        let mut world = CheckedWorld::healthy();
        world.settings.policy = "ram = ['postcopy']".parse().expect("a policy");
        let blocks = world.destination.machine.ram_blocks.as_mut().expect("blocks");
        blocks.get_mut("pc.ram").expect("pc.ram").page = page;
        let findings = world.findings();
        let told = findings.iter().find(|finding| finding.code == FindingCode::PostcopyUnable);
        assert_eq!(told.is_some(), words.is_some(), "{findings:#?}");
        assert!(told.is_none_or(|told| told.message.contains(words.unwrap_or_default())), "{told:?}");
    }
}
