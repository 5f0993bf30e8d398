//! The codes of the findings of the preflight and of a preparation.
//!
//! Pure.

use super::word;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Severity {
    /// The migration may not start.
    Blocker,
    /// The migration may start, but the guest's owner should know.
    Warning,
    /// The guest's owner may like to know.
    Note,
}

impl Severity {
    /// The name the contract uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blocker => "blocker",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The consequences of a finding beyond its severity.
#[derive(PartialEq, Eq)]
enum Leave {
    /// No further consequence.
    Plain,
    /// The guest's owner may force the migration: the finding is a judgement that can be wrong for a guest. A migration
    /// that would surely fail, lose data or leave two runners can never be forced.
    Forcible,
    /// No export may be opened: the sides are not as they should be, or another program may be using their NBD servers,
    /// or the images that would be read are being written to.
    Unreadable,
}

macro_rules! finding_codes {
    ($($variant:ident $code:literal $leave:ident [$($severity:ident)+] $meaning:literal $remedy:literal;)+) => {
        /// The kind of a finding, as a stable word for programs.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub enum FindingCode {
            $(#[doc = $meaning] $variant,)+
            /// A code of another version of qferry.
            Other(String),
        }

        impl FindingCode {
            /// Every code that this version fires.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Other(code) => code,
                }
            }

            /// The meaning of this code, one sentence or two for people.
            pub fn meaning(&self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                    Self::Other(_) => "",
                }
            }

            /// The general remedy, without a full stop; empty where nothing is to be done. A finding can have a
            /// better one.
            pub fn remedy(&self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)+
                    Self::Other(_) => "",
                }
            }

            /// The severities that a finding of this code can have, the gravest first.
            pub fn severities(&self) -> &'static [Severity] {
                match self {
                    $(Self::$variant => &[$(Severity::$severity),+],)+
                    Self::Other(_) => &[],
                }
            }

            fn leave(&self) -> Leave {
                match self {
                    $(Self::$variant => Leave::$leave,)+
                    Self::Other(_) => Leave::Plain,
                }
            }
        }
    };
}

finding_codes! {
    AddressMissing "address-missing" Unreadable [Blocker]
        "No address could be chosen at which a QEMU would listen."
        "give the address: `nbd_address` and `migrate_address` for the destination, `source_nbd_address` for the source";
    BackingDiffers "backing-differs" Plain [Blocker]
        "A backing file of the destination is not the source's: the guest would read other data."
        "bring the source's backing file to the destination; where none is there, qferry prepare with `populate: missing` copies it";
    BackingFormat "backing-format" Plain [Note]
        "A backing file of the destination has another format than the source's, so the data that a guest reads is compared."
        "";
    BackingHeader "backing-header" Plain [Warning]
        "The header of a destination's image names another backing file than the one that QEMU has opened. A QEMU that is started later would open the one in the header."
        "once no process has the image open, write the right name into its header with qemu-img rebase -u -b";
    BackingIsLive "backing-is-live" Unreadable [Blocker]
        "The destination's image is over the file that the guest writes to on the source."
        "give the destination an overlay over the backing file of that image: qferry prepare makes one";
    BackingMissing "backing-missing" Plain [Blocker]
        "The source's image is over a backing file, and the destination has none in its place."
        "make the overlay with qferry prepare, which with `populate: missing` copies the backing file, too; `storage: full` needs no backing file";
    BackingSize "backing-size" Plain [Blocker]
        "A backing file of the destination has another virtual size than the source's."
        "bring the source's backing file to the destination; where none is there, qferry prepare with `populate: missing` copies it";
    BackingUnproved "backing-unproved" Plain [Blocker]
        "Backing files were to be compared and could not be."
        "both QEMUs must be able to export the file, and qferry must reach both: see `nbd_address` and `source_nbd_address`; `verify_backing: off` migrates without a proof";
    BackingUnreadable "backing-unreadable" Plain [Blocker]
        "A file is in the place of a backing file, and qemu-img cannot read it."
        "check that the file is the right image";
    BackingUnused "backing-unused" Plain [Note]
        "The whole disk is copied, so the destination's image does not need the backing file below it."
        "";
    BackingUnverified "backing-unverified" Plain [Warning]
        "Nothing proves that the destination's backing files are the source's, or only sizes and formats do."
        "compare samples of the contents with `verify_backing: sample`, in about a second: another backing file would corrupt the guest";
    BitmapLost "bitmap-lost" Plain [Warning]
        "A dirty bitmap of a disk does not arrive on the destination."
        "make the next backup a full one instead of an incremental one";
    CapabilityConflict "capability-conflict" Plain [Blocker]
        "Two settings of the migration of RAM do not go together in QEMU."
        "leave out one of the two";
    CapabilityMissing "capability-missing" Plain [Blocker]
        "The build of a QEMU lacks a migration capability, or a compression, that a setting asks for."
        "leave the setting out, or use a QEMU that has the capability";
    ChainChanged "chain-changed" Plain [Blocker]
        "A device, or the images that a disk is over, changed while images were compared."
        "wait until the block job or the client that changes them has ended, and check again";
    ChainUnknown "chain-unknown" Plain [Blocker]
        "QEMU does not tell which images a disk consists of."
        "name a disk whose root is an image, or leave this one out with `skip`";
    CommandLineUnknown "command-line-unknown" Plain [Note]
        "The source's command line cannot be read, so no command line can be made for the destination."
        "start the destination like the source, with these images and these arguments";
    CpuCount "cpu-count" Plain [Blocker]
        "The two QEMUs have different numbers of virtual CPUs."
        "start the destination with the source's -smp";
    CpuFeatures "cpu-features" Forcible [Blocker]
        "The destination's CPU lacks features of the source's, which programs of the guest may be using."
        "start the destination with the source's -cpu, on a host and a QEMU that have these features: a program that uses them would crash";
    CpuFeaturesExtra "cpu-features-extra" Plain [Warning]
        "The destination's CPU has features that the source's lacks."
        "start the destination with the source's -cpu: otherwise the guest sees the features when it boots again at the latest, and cannot migrate back then";
    CpuModel "cpu-model" Forcible [Blocker]
        "The destination's CPU is of another model than the source's."
        "start both QEMUs with the same named -cpu model: host and max mean another CPU on each host and in each QEMU";
    CpuName "cpu-name" Plain [Note]
        "The CPUs differ in nothing but their model-id, which is a name for people."
        "";
    CpuTopology "cpu-topology" Forcible [Blocker]
        "The two machines have places for different virtual CPUs: another maxcpus, or other sockets, cores and threads. QEMU refuses the state of a machine whose guest can plug in other CPUs, after everything was copied."
        "start the destination with the source's -smp, its maxcpus and topology too";
    DataFile "data-file" Plain [Blocker]
        "An image keeps its data in a file of its own, which a preparation does not make."
        "make the image by hand, and leave the disk out of the preparation with `skip`";
    DestinationAutostart "destination-autostart" Plain [Warning]
        "The destination's QEMU was started without `-S`. qferry tells it to stop before anything is copied, but until then it would run by itself whatever guest another client sent there."
        "start the destination QEMU with -incoming defer -S";
    DestinationHoldsData "destination-holds-data" Forcible [Blocker]
        "An image of the destination has data in it and would be overwritten."
        "make a fresh image, if nobody needs the data in this one";
    DestinationState "destination-state" Unreadable [Blocker]
        "The destination's QEMU does not wait for a guest."
        "start the destination QEMU with -incoming defer -S";
    DestinationUsed "destination-used" Unreadable [Blocker]
        "The destination's QEMU has taken an incoming migration before, or is taking one."
        "start the destination QEMU anew with -incoming defer -S: a QEMU takes one incoming migration only";
    DeviceDiffers "device-differs" Forcible [Blocker]
        "A device of the destination has another type or address than the source's."
        "start the destination with the source's devices, each with its type and addr";
    DeviceExtra "device-extra" Forcible [Blocker]
        "The destination has a device that the source does not have."
        "start the destination with the source's devices alone: the guest would meet a device that it never had";
    DeviceMissing "device-missing" Forcible [Blocker]
        "The destination lacks a device of the source."
        "start the destination with the source's devices, also with those that were plugged in later";
    DeviceProperty "device-property" Forcible [Blocker]
        "A device of the destination has another property than the source's that the guest can see, such as a block size, a serial number or a MAC address."
        "start the destination with the source's properties of the device";
    DeviceRenamed "device-renamed" Plain [Note]
        "A device has another id on the destination, which the guest does not see."
        "";
    DeviceSetting "device-setting" Plain [Note]
        "A device has another setting on the destination that the guest does not see, such as the action at a disk error."
        "";
    DeviceState "device-state" Plain [Blocker]
        "A device of the destination has another form than the source's, such as another number of queues or vectors: QEMU would refuse its state after everything was copied."
        "start the destination with the source's properties of the device";
    DirectoryMissing "directory-missing" Plain [Blocker]
        "The directory for an image of the destination is not there."
        "make the directory, or give another place";
    DiskAmbiguous "disk-ambiguous" Plain [Blocker]
        "More than one disk of the destination could be the counterpart of a disk of the source."
        "name each pair: `disks: SOURCE=DESTINATION`";
    DiskExtra "disk-extra" Plain [Warning]
        "The destination has a disk that nothing is copied to."
        "name its pair, `disks: SOURCE=DESTINATION`, or start the destination without it: the guest would find it there";
    DiskHasJob "disk-has-job" Plain [Blocker Warning]
        "A block job is at work on a disk: QEMU would not mirror the disk, or not give up its images at the switchover. A job that writes to an image further down changes what was proved of it. The finding is a warning where the disk is not copied and the job does not hinder."
        "wait for the job or cancel it; query-block-jobs shows it";
    DiskLeftOut "disk-left-out" Plain [Warning]
        "A writable disk is neither moved nor left out by name."
        "name the disk with `disks`, too, or leave it out with `skip`";
    DiskLocked "disk-locked" Plain [Blocker]
        "Another process has an image of the destination open for writing."
        "find out which process that is; if it is the source's QEMU, both have the same file, and `storage: none` copies nothing";
    DiskMissing "disk-missing" Plain [Blocker]
        "The destination has no counterpart of a disk of the source."
        "give the destination a device of the same id, name the pair, `disks: SOURCE=DESTINATION`, or leave the disk out with `skip`";
    DiskNotShared "disk-not-shared" Plain [Blocker]
        "A disk is said to be shared, and the two QEMUs have different files open."
        "with `storage: none` both sides must have the same file open; leave that setting out to copy the disk";
    DiskNotSparse "disk-not-sparse" Plain [Note]
        "A raw image of the destination may take up its full size."
        "";
    DiskNotWritable "disk-not-writable" Plain [Blocker]
        "The destination's QEMU may not write to an image."
        "give its user the right to write to it";
    DiskPlaceDiffers "disk-place-differs" Plain [Blocker]
        "The destination has a disk at another place in the guest than the source: another address, unit or LUN, or a controller at another address. The guest would find another disk there."
        "start the destination with each disk at the source's address (addr, bus, unit, channel, scsi-id, lun), or name the pairs: `disks: SOURCE=DESTINATION`";
    DiskPlaceUnknown "disk-place-unknown" Plain [Warning]
        "The place of a disk in the guest is not known on both sides, so it is not proved that the guest finds the same disk there."
        "make sure that both QEMUs have each disk at the same address: give its device on both sides an id, and its address (a USB device its port) explicitly";
    DiskReadOnly "disk-read-only" Plain [Blocker]
        "The destination's counterpart of a writable disk is read-only."
        "start the destination with this disk writable";
    DiskSettingsDiffer "disk-settings-differ" Plain [Warning Note]
        "What was set of a disk on the source, as a rule while its QEMU ran, is not set on the destination: limits of I/O, a write threshold. The finding is a note for detect-zeroes."
        "give the destination's disk the same throttle groups with the same limits";
    DiskShared "disk-shared" Plain [Note]
        "Both QEMUs have the same file open as this disk, so it is not copied."
        "";
    DiskSharedUnproved "disk-shared-unproved" Plain [Warning]
        "A disk is said to be shared, and from here it cannot be seen whether both QEMUs have the same file."
        "make sure that both have the same file, and that both use cache=none: the source's page cache is not the destination's";
    DiskSize "disk-size" Plain [Blocker]
        "A disk and its counterpart on the destination have different virtual sizes."
        "create the destination's overlay with exactly the source's virtual size";
    DiskUnencrypted "disk-unencrypted" Plain [Warning]
        "An encrypted disk would be copied to an image that is not."
        "encrypt the destination's image, too";
    DiskUnknown "disk-unknown" Plain [Blocker]
        "A setting names a disk that is not there."
        "name the disk by its qdev, device or node name, which query-block shows";
    ExportOpen "export-open" Unreadable [Blocker]
        "The destination's QEMU has an export already."
        "stop its NBD server: a QEMU has only one, and nobody else may write to the disks";
    FormatUnsupported "format-unsupported" Plain [Blocker]
        "An image is of a format that a preparation cannot make, or whose header it cannot change."
        "make the image by hand, and leave the disk out of the preparation with `skip`";
    GuestIoError "guest-io-error" Plain [Warning]
        "The guest stands still after an error of a disk, and stays so where it arrives."
        "send cont to the destination once the guest is there: the guest then tries the write again";
    GuestSuspended "guest-suspended" Forcible [Blocker Warning]
        "The guest is suspended (S3), and a QEMU before 9.0 has it awake where it arrives. The finding is a warning where the guest has suspended itself since the checks."
        "wait until the guest is awake, wake it with system_wakeup, or use QEMU 9.0 or later on both sides";
    ImageEncrypted "image-encrypted" Plain [Blocker]
        "An image is encrypted, and a preparation does not know its secret."
        "make the image by hand, and leave the disk out of the preparation with `skip`";
    ImageExists "image-exists" Plain [Blocker]
        "A file that does not fit is in the place of an image to be made."
        "move the file away, or give another place with `to` or `map`: an image that exists is never overwritten";
    ImageNameLost "image-name-lost" Plain [Warning]
        "The source's QEMU keeps an image open whose name leads to another file by now, or to none. The migration is not hindered, and what opens that name later has not the guest's data."
        "nothing for the migration: the guest's disk has a name again on the destination";
    ImagePlainer "image-plainer" Plain [Note]
        "The destination's qcow2 image lacks a property of the source's image that the guest does not see: subclusters, small clusters, a data file of its own."
        "";
    ImageReplaced "image-replaced" Unreadable [Blocker]
        "A QEMU has an image open, and its name leads to another file or to none. A source that opens its image anew at the handover would fail then, or take the other file for the guest's disk; a destination's data would be found by nobody."
        "give the image its name back; if no name is left, move the guest's disk to an image that has one, with drive-mirror and block-job-complete";
    ImageSame "image-same" Plain [Blocker]
        "The place of an image to be made is the source's own image."
        "give another place with `to` or `map`";
    ImageSpent "image-spent" Plain [Note]
        "An image of the destination holds a part of a disk, from a migration that was called off, and all of it is written again."
        "";
    ImageUpgraded "image-upgraded" Plain [Note]
        "An image of qcow2 version 2 becomes one of version 3."
        "";
    InheritedFiles "inherited-files" Plain [Note]
        "The source was given open files, which a command line cannot name."
        "start the destination like the source";
    JobRunning "job-running" Plain [Blocker Warning]
        "A job runs in the source's QEMU. A preparation that would copy from its chain is refused."
        "wait for the job: it can keep its disk from being mirrored";
    Journal "journal" Plain [Blocker]
        "The journal of the migration could not be begun."
        "give another place with `journal`, or keep no journal with `journal: nowhere`";
    JournalLeft "journal-left" Plain [Warning]
        "The journal of an earlier migration of this pair is there, and the engine that wrote it is dead. Capabilities and parameters may still be that engine's."
        "recover the migration from its journal, or let `clean` do so";
    LayerRemote "layer-remote" Plain [Note]
        "A backing file is reached over a protocol, so the destination must be able to reach it under the same name."
        "";
    Leftover "leftover" Unreadable [Blocker Warning]
        "A QEMU has jobs, nodes or exports of an earlier migration, or of a migration that runs now. The finding is a warning where they are going to be removed."
        "an earlier migration left it, or another qferry migrates this guest now: wait for that one, or if there is none, remove the leftover with `clean`";
    LeftoverView "leftover-view" Plain [Warning]
        "A QEMU has a read-only export of a check that was killed or is still running."
        "nothing: the next comparison of backing files removes it if nobody reads from it; so does `clean`";
    MachineProperty "machine-property" Forcible [Blocker]
        "The destination's machine has another property than the source's, such as hpet, smm or the memory below 4 GiB."
        "start the destination with the source's -machine";
    MachineType "machine-type" Forcible [Blocker]
        "The two QEMUs emulate different machine types."
        "start the destination with the source's -machine";
    MediumExtra "medium-extra" Forcible [Blocker]
        "A drive is empty on the source and has a medium on the destination: the guest would find a medium that nobody inserted."
        "take the medium out on the destination, or insert the same one on the source";
    MediumMissing "medium-missing" Plain [Blocker Warning]
        "The destination lacks an image that the source only reads. In a preparation the finding is a warning: the image must be there when the destination is started."
        "give the destination the same medium, which is not copied, or leave the disk out with `skip`";
    MediumSize "medium-size" Plain [Blocker]
        "An image that is only read has another size on the destination."
        "give the destination the same medium, which is not copied, or leave the disk out with `skip`";
    MigrationBlocked "migration-blocked" Unreadable [Blocker]
        "QEMU itself says that this guest cannot be migrated."
        "remove the device or the option that QEMU names";
    MigrationUnderWay "migration-under-way" Unreadable [Blocker]
        "The source is migrating already."
        "wait until that migration has ended, or cancel it with migrate_cancel";
    NoOutOfBand "no-out-of-band" Plain [Warning]
        "The greeting of a monitor does not offer commands out of band (`oob`). They alone get through to a QEMU whose main loop waits for the other one, so qferry cannot free such a QEMU with yank, nor find out whether it hangs or was stopped as a whole."
        "give qferry a QMP monitor of QEMU's own, -qmp unix:PATH,server=on,wait=off: a program in between takes the offer away, and so does a build without it. Without the offer a QEMU that waits for the other one goes on when the process of the other one has ended";
    NoSpace "no-space" Plain [Blocker]
        "A file system of the destination may not have room for what is copied to it."
        "make room, or count only what is to be copied now with `overcommit`";
    NotCompared "not-compared" Plain [Note]
        "A property of the two machines is not known on both sides and was not compared."
        "";
    NotMeasured "not-measured" Plain [Note]
        "A measurement that a prediction needs could not be made."
        "";
    NotOnCommandLine "not-on-command-line" Plain [Warning]
        "An image or a device is not on the source's command line: the device was plugged in later."
        "give the destination a device of the same id, on the new image";
    OpenPort "open-port" Plain [Warning]
        "A QEMU would listen on a port of this host's own. The port has no password: another process of this host can connect before QEMU does, and read or write the guest's data."
        "give a path for a socket instead, or none where both QEMUs are processes of this host";
    OverlayIsBacking "overlay-is-backing" Unreadable [Blocker]
        "The destination would write to a file that other images are over."
        "give the disk an overlay of its own: qferry prepare makes one";
    OverlayIsLive "overlay-is-live" Unreadable [Blocker]
        "The destination would write to the image of another disk of the source."
        "give each disk of the destination its own image; a shared image must belong to the same disk on both sides";
    OverlayNotEmpty "overlay-not-empty" Plain [Blocker]
        "An overlay of the destination has data of its own, which would hide the source's."
        "make a fresh overlay: the old data would stay wherever the source's overlay has none";
    OverlayTaken "overlay-taken" Unreadable [Blocker]
        "Two disks would be copied onto one image."
        "give each disk of the destination an image of its own: qferry prepare makes one";
    OverlayUnproved "overlay-unproved" Plain [Blocker]
        "An image of the destination could not be read, so it is not known to be empty."
        "the destination's QEMU must be able to export the image, and qferry must reach that QEMU: see `nbd_address`; `verify_backing: off` migrates without a proof";
    OverlayVersion "overlay-version" Plain [Warning]
        "An overlay is of qcow2's version 2, which stores every zero over a backing file in full."
        "make the overlay with compat=1.1";
    PathUnknown "path-unknown" Plain [Blocker]
        "The path of an image is relative, and the working directory of the source's QEMU is not known."
        "start the source with absolute paths, or run qferry on its host";
    PlaceTaken "place-taken" Plain [Blocker]
        "Two files of the source would have one path on the destination."
        "give each file a place of its own: `map: SOURCE=DESTINATION`";
    PlaceUnknown "place-unknown" Plain [Blocker]
        "No place on the destination is given for an image."
        "give a folder, `to: DIR`, or the image's own place, `map: SOURCE=DESTINATION`";
    Plaintext "plaintext" Plain [Blocker Warning]
        "The guest's data would cross the network unencrypted. The finding is a warning where that is allowed."
        "allow plain text with `allow_plaintext` if the network is trusted, or use a tunnel";
    PortTaken "port-taken" Unreadable [Blocker]
        "A process listens already at an address that was given."
        "give another port";
    PortUnreachable "port-unreachable" Forcible [Blocker Warning]
        "An address that was given cannot be reached from here. The finding is a warning where the source's QEMU, which must reach the address, is not known to be in this network."
        "check that no firewall is in the way: the other QEMU must reach this address";
    PostcopyUnable "postcopy-unable" Plain [Blocker]
        "The policy may use postcopy, and the destination could not: its process may not catch accesses to missing pages, or its RAM has pages of another size."
        "take a policy without postcopy, or mend what is named: the sysctl vm.unprivileged_userfaultfd, or the memory backends";
    ProtocolUnsupported "protocol-unsupported" Plain [Blocker]
        "An image is reached over a network protocol, and a preparation makes files only."
        "leave the disk out with `skip`, or share it with `storage: none`: an image that both sides reach needs no preparation";
    QemuInUse "qemu-in-use" Unreadable [Blocker]
        "Another engine is at work with one of the two QEMUs, as a journal proves that is being written."
        "wait until that engine has ended, or end it and recover its migration from the journal";
    QemuLacks "qemu-lacks" Unreadable [Blocker]
        "A QEMU lacks a command that a migration needs."
        "use QEMU 6.2 or later, built with block jobs and NBD";
    QemuOlder "qemu-older" Forcible [Blocker]
        "The destination's QEMU is of an older release than the source's."
        "start a newer QEMU: an older one may not understand the guest's state";
    QemuOlderMicro "qemu-older-micro" Plain [Note]
        "The destination's QEMU is an older stable release of the same series; such releases are made to migrate both ways."
        "";
    RamBlocks "ram-blocks" Forcible [Blocker]
        "The blocks that the guest's RAM is made of differ."
        "start the destination with the source's -m, memory backends, devices and firmware";
    RamShared "ram-shared" Forcible [Blocker]
        "Both QEMUs have one file mapped as shared memory, so that the destination would write old pages over the memory of the guest that runs on the source."
        "start the destination with another mem-path, or with share=off";
    RamSize "ram-size" Plain [Blocker]
        "The two QEMUs have different sizes of RAM."
        "start the destination with the source's -m";
    ReopenDenied "reopen-denied" Forcible [Blocker]
        "The source's QEMU may not open its own image by the rights that it has now, as after -runas. QEMU opens an image with auto-read-only, as each -drive has it, anew when it hands over the guest: the migration would fail after everything was copied, or the source could not take the image back if the guest had to return."
        "let the user that the source runs as open the image for reading and writing, and enter the folders above it";
    SameHost "same-host" Plain [Note]
        "On the source's host, arguments of the destination's command line would collide with the source's."
        "change these arguments, or start the destination on another host";
    SameProcess "same-process" Unreadable [Blocker]
        "Source and destination are one QEMU."
        "give the QMP socket of the destination's own QEMU";
    SecretHidden "secret-hidden" Plain [Note]
        "A secret on the source's command line is not shown."
        "put the secret back before you start the destination, or better pass the secret as file=";
    SnapshotsLost "snapshots-lost" Plain [Warning]
        "An image that is copied has snapshots inside. A mirror copies what the guest sees now, and no snapshot."
        "keep the source's image as long as the snapshots are needed, or copy each one before: qemu-img convert -l NAME, once no process writes to the image";
    SocketForbidden "socket-forbidden" Unreadable [Blocker]
        "A QEMU could not make a socket at the address where it would listen, or the other could not connect to it: the user that it runs as may not."
        "run qferry as the user of both QEMUs, or give `nbd_address`, `migrate_address` and `source_nbd_address` in a folder that this user may write to";
    SourceState "source-state" Unreadable [Blocker]
        "The guest is neither running nor paused."
        "only a guest that runs, is paused or stands after a disk error can be moved";
    VirtqueueSize "virtqueue-size" Forcible [Blocker Warning]
        "A ring of a virtio device has more entries than the destination's device has room for: QEMU 11.1 refuses its state, after everything was copied. The finding is a warning where the ring has fewer entries now and gets more when the guest resets the device."
        "give the destination's device as large rings, where it has a property for that: queue-size of virtio-blk, virtqueue_size of virtio-scsi";
}

word!(FindingCode);

impl From<&str> for FindingCode {
    fn from(word: &str) -> Self {
        Self::known(word).unwrap_or_else(|| Self::Other(word.to_owned()))
    }
}

impl FindingCode {
    /// The code of this word; `None` where this version has no such code.
    pub fn known(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|code| code.as_str() == word).cloned()
    }

    /// The severity of a finding of this code where the check chooses no other.
    pub fn severity(&self) -> Severity {
        self.severities().first().copied().unwrap_or(Severity::Blocker)
    }

    /// The words of the codes that may be forced.
    pub fn forcible() -> impl Iterator<Item = &'static str> {
        Self::ALL.iter().filter(|code| code.is_forcible()).map(Self::as_str)
    }

    /// Whether the guest's owner may force the migration in spite of a finding of this code.
    pub fn is_forcible(&self) -> bool {
        self.leave() == Leave::Forcible
    }

    /// Whether images may be opened for reading in spite of a finding of this code.
    pub fn is_readable(&self) -> bool {
        self.leave() != Leave::Unreadable
    }
}
