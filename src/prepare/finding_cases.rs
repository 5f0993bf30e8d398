//! A case for each code that a preparation alone can find, as the migration's cases are for all others.

use super::{
    handle::command_line,
    requirements::{self, SourceLayout},
    settings::PrepareSettings,
    steps::{self, PathContent, PathContents},
};
use crate::{
    codes::FindingCode,
    migration::finding_cases,
    preflight::checks::Finding,
    storage::{
        files::filesystem::FileSystem,
        model::{
            chain::{BackingChain, Layer, ProtocolNode, Qcow2},
            layout::Disk,
            path_map::PathMap,
        },
    },
};

/// Everything that a preparation is made of.
struct PreparedWorld {
    told: SourceLayout,
    settings: PrepareSettings,
    looks: PathContents,
    command_line: Option<Vec<String>>,
}

fn layer(file: &str, format: &str) -> Layer {
    let qcow2 = Qcow2 { compat: "1.1".to_owned(), refcount_bits: 16, ..Qcow2::default() };
    Layer {
        format: format.to_owned(),
        file: file.to_owned(),
        protocol: ProtocolNode { node: format!("p-{file}"), driver: "file".to_owned(), file: file.to_owned() },
        virtual_size: 1 << 20,
        qcow2: Some(qcow2).filter(|_| format == "qcow2"),
        ..Layer::default()
    }
}

fn disk(name: &str, top: &str) -> Disk {
    let layers = vec![layer(top, "qcow2"), layer("/s/base", "raw")];
    Disk {
        qdev: Some(name.to_owned()),
        device: None,
        node: format!("n-{name}"),
        path: None,
        file: top.to_owned(),
        read_only: false,
        virtual_size: 1 << 20,
        chain: BackingChain { layers, filters: Vec::new() },
    }
}

impl PreparedWorld {
    fn healthy() -> Self {
        let file_system = FileSystem { device: 1, free: 1 << 40, read_only: false, name: "/d (xfs)".to_owned() };
        let places = PathMap { maps: Vec::new(), to: Some("/d".into()) };
        Self {
            told: SourceLayout { disks: vec![disk("disk0", "/s/top")], directory: None, local: true },
            settings: PrepareSettings { places, ..PrepareSettings::default() },
            looks: [("/d/top".into(), PathContent::Absent(Ok(file_system))), ("/s/base".into(), PathContent::Same)]
                .into(),
            command_line: Some(["qemu", "-drive", "file=/s/top"].map(str::to_owned).into()),
        }
    }

    fn top(&mut self) -> &mut Layer {
        &mut self.told.disks[0].chain.layers[0]
    }

    fn argue(&mut self, words: [&str; 2]) {
        self.command_line.iter_mut().for_each(|line| line.extend(words.map(str::to_owned)));
    }

    fn see(&mut self, path: &str, seen: PathContent) {
        self.looks.insert(path.into(), seen);
    }

    fn findings(self) -> Vec<Finding> {
        let Self { told, settings, looks, command_line: words } = self;
        let wish = requirements::read(&told, &settings);
        let (_, found) = steps::decide(&wish, &looks, &settings, "qemu-img");
        let (_, notes) = command_line(words, &wish, &told);
        [wish.findings, found, notes].concat()
    }
}

/// What makes this code appear; `None` for a code that the preflight finds, which has its case with the migration.
fn case(code: &FindingCode) -> Option<fn(&mut PreparedWorld)> {
    use FindingCode as Code;
    Some(match code {
        Code::BackingUnreadable => |world| world.see("/s/base", PathContent::Other("it is no image".to_owned())),
        Code::CommandLineUnknown => |world| world.command_line = None,
        Code::DataFile => |world| world.top().data_file = Some("/s/data".to_owned()),
        Code::DirectoryMissing => |world| world.see("/d/top", PathContent::Absent(Err("no such directory".to_owned()))),
        Code::FormatUnsupported => |world| world.top().format = "vmdk".to_owned(),
        Code::ImageEncrypted => |world| world.top().encrypted = true,
        Code::ImageExists => |world| world.see("/d/top", PathContent::Other("it holds data".to_owned())),
        Code::ImageSame => |world| world.see("/d/top", PathContent::Same),
        Code::ImageUpgraded => |world| world.top().qcow2.as_mut().expect("qcow2").compat = "0.10".to_owned(),
        Code::InheritedFiles => |world| world.argue(["-netdev", "tap,id=t,fd=5"]),
        Code::LayerRemote => |world| world.told.disks[0].chain.layers[1].protocol.driver = "nbd".to_owned(),
        Code::NotOnCommandLine => |world| world.command_line = Some(vec!["qemu".to_owned()]),
        Code::PathUnknown => |world| world.top().protocol.file = "top".to_owned(),
        Code::PlaceTaken => |world| world.told.disks.push(disk("disk1", "/other/top")),
        Code::PlaceUnknown => |world| world.settings.places.to = None,
        Code::ProtocolUnsupported => |world| world.top().protocol.driver = "rbd".to_owned(),
        Code::SameHost => |world| world.argue(["-vnc", ":0"]),
        Code::SecretHidden => |world| world.argue(["-object", "secret,id=s,data=hush"]),
        _ => return None,
    })
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(PreparedWorld::healthy().findings(), []);
}

/// With this, every code has a case that makes it appear and one without it.
#[test]
fn each_code_is_found_by_its_case_here_or_with_the_migration() {
    for code in FindingCode::ALL {
        let Some(change) = case(code) else {
            assert!(finding_cases::case(code).is_some(), "{code} has no case");
            continue;
        };
        let mut world = PreparedWorld::healthy();
        change(&mut world);
        let findings = world.findings();
        let found = findings.iter().find(|finding| finding.code == *code);
        let found = found.unwrap_or_else(|| panic!("{code} is not among {findings:#?}"));
        assert!(code.severities().contains(&found.severity), "{found:?}");
    }
}
