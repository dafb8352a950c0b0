//! The kernel's side of one resource.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::machine::{EXEC_LIMIT, Machine, SLOT_BYTES};
use super::messages;
use crate::e2e::node::Meta;
use crate::e2e::process::Ended;

/// How long a state may take to be reached.
const STATE_LIMIT_S: u64 = 40;

/// A resource in the kernel of a machine, seen through one of its volumes (the first, unless [`KernelNode::volume`]).
#[derive(Debug)]
pub struct KernelNode<'m> {
    machine: &'m Machine,
    /// The resource's name in the machine.
    pub name: String,
    /// The volume's minor, also its slice of the disk.
    pub minor: u32,
    /// Minor of the first volume, also the number of the port.
    first: u32,
    volumes: u32,
    /// Bytes of each backing disk, internal metadata included.
    pub disk_bytes: u64,
    meta: Meta,
    life: Life,
}

/// External metadata lie in the last bytes of a resource's slice.
const META_BYTES: u64 = 4 << 20;

/// Whether a value stands for the resource itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Its end takes the resource down.
    Resource,
    /// A look at another volume.
    View,
}

impl<'m> KernelNode<'m> {
    /// Makes the backing disks; nothing is configured yet.
    ///
    /// # Panics
    /// When the machine is full or its device mapper refuses.
    pub fn create(
        machine: &'m Machine,
        disk_bytes: u64,
        volumes: u16,
        meta: Meta,
    ) -> KernelNode<'m> {
        let bytes_max = SLOT_BYTES - META_BYTES;
        assert!(disk_bytes <= bytes_max, "at most {bytes_max} bytes");
        let volumes = u32::from(volumes);
        let first = machine.next_resource(volumes);
        let node = KernelNode {
            machine,
            name: format!("s{first}"),
            minor: first,
            first,
            volumes,
            disk_bytes,
            meta,
            life: Life::Resource,
        };
        node.make_disks();
        node
    }

    /// The same resource, seen through another of its volumes.
    pub fn volume(&self, number: u16) -> KernelNode<'m> {
        KernelNode {
            machine: self.machine,
            name: self.name.clone(),
            minor: self.first + u32::from(number),
            first: self.first,
            volumes: self.volumes,
            disk_bytes: self.disk_bytes,
            meta: self.meta,
            life: Life::View,
        }
    }

    fn minors(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.volumes
    }

    fn make_disks(&self) {
        for minor in self.minors() {
            self.shell(&format!(
                "DM_DISABLE_UDEV=1 dmsetup create disk{minor} --table '{}'",
                self.table(minor)
            ));
            if self.meta == Meta::External {
                let start = (u64::from(minor + 1) * SLOT_BYTES - META_BYTES) / 512;
                self.shell(&format!(
                    "DM_DISABLE_UDEV=1 dmsetup create meta{minor} --table '0 {} linear /dev/vda {start}'",
                    META_BYTES / 512
                ));
            }
        }
    }

    fn meta_words(&self, minor: u32) -> String {
        match self.meta {
            Meta::Internal => String::from("meta-disk internal"),
            Meta::External => format!("flexible-meta-disk /dev/mapper/meta{minor}"),
        }
    }

    fn table(&self, minor: u32) -> String {
        let start = u64::from(minor) * SLOT_BYTES / 512;
        format!("0 {} linear /dev/vda {start}", self.disk_bytes / 512)
    }

    /// From now on the backing disk of this volume fails, or works again.
    ///
    /// # Panics
    /// When the device mapper refuses.
    pub fn set_disk(&self, health: Health) {
        let table = match health {
            Health::Good => self.table(self.minor),
            Health::Failing => format!("0 {} error", self.disk_bytes / 512),
        };
        let minor = self.minor;
        // --noflush: what is under way meets the new table.
        self.shell(&format!(
            "export DM_DISABLE_UDEV=1; dmsetup suspend --noflush --nolockfs disk{minor} && \
             dmsetup load disk{minor} --table '{table}' && dmsetup resume disk{minor}"
        ));
    }

    fn slice(&self) -> u64 {
        u64::from(self.minor) * SLOT_BYTES
    }

    /// The port on which DRBD listens in the machine.
    pub fn guest_port(&self) -> u16 {
        Machine::guest_port(self.first)
    }

    /// The device.
    pub fn device(&self) -> String {
        format!("/dev/drbd{}", self.minor)
    }

    /// Writes the configuration: the peer listens on `peer_port` of the host.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn configure(&self, peer_port: u16, net: &str, disk: &str) {
        let volumes: String = self
            .minors()
            .map(|minor| {
                format!(
                    "  volume {} {{ device /dev/drbd{minor} minor {minor}; disk /dev/mapper/disk{minor}; {}; }}\n",
                    minor - self.first,
                    self.meta_words(minor)
                )
            })
            .collect();
        let text = format!(
            "resource {name} {{\n  net {{ {net} }}\n  disk {{ {disk} }}\n{volumes}  \
             on k {{ address 10.0.2.15:{port}; }}\n  on t {{ address 10.0.2.2:{peer_port}; }}\n}}\n",
            name = self.name,
            port = self.guest_port(),
        );
        let file = format!("{}.res", self.name);
        fs::write(self.machine.share().join(&file), text).expect("write a configuration");
        self.shell(&format!(
            "cp /share/{file} /etc/drbd.d/.{file} && mv /etc/drbd.d/.{file} /etc/drbd.d/{file}"
        ));
    }

    /// After a boot: the backing disk and the configuration again.
    pub fn after_boot(&self, peer_port: u16, net: &str, disk: &str) {
        self.make_disks();
        self.configure(peer_port, net, disk);
    }

    /// Runs a line of shell in the machine, which must succeed; its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn shell(&self, line: &str) -> String {
        let ended = self.machine.exec(line, EXEC_LIMIT);
        assert_eq!(
            ended.code,
            Some(0),
            "in the machine: {line}: {}\n{}",
            ended.all(),
            self.log()
        );
        ended.stdout
    }

    /// `drbdadm ARGS` with this resource, whatever its exit code.
    pub fn adm(&self, args: &str) -> Ended {
        self.machine
            .exec(&format!("drbdadm {args} {} 2>&1", self.name), EXEC_LIMIT)
    }

    /// `drbdadm ARGS` with this resource, which must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn must(&self, args: &str) -> String {
        for _ in 0..5 {
            let ended = self.adm(args);
            // drbdadm gives each step five seconds, which a starved machine may exceed; what is done is not done again.
            if !ended.stdout.contains("did not terminate within") {
                assert_eq!(
                    ended.code,
                    Some(0),
                    "in the machine: drbdadm {args}: {}\n{}",
                    ended.all(),
                    self.log()
                );
                return ended.stdout;
            }
        }
        panic!("the machine is too slow for drbdadm {args}");
    }

    /// The first volume's data count as equal to the peer's: for a connected pair that was never in sync.
    ///
    /// # Panics
    /// When it fails.
    pub fn skip_initial_sync(&self) {
        self.shell(&format!(
            "drbdadm new-current-uuid --clear-bitmap {}/0",
            self.name
        ));
    }

    /// The line of `/proc/drbd`: `cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----`; empty: unconfigured.
    pub fn state(&self) -> String {
        let line = format!("sed -n 's/^ *{}: //p' /proc/drbd", self.minor);
        self.machine
            .exec(&line, EXEC_LIMIT)
            .stdout
            .trim()
            .to_owned()
    }

    /// The counter of blocks out of sync, in KiB.
    ///
    /// # Panics
    /// When there is none.
    pub fn out_of_sync_kib(&self) -> u64 {
        let line = format!(
            "sed -n '/^ *{}: /{{n;s/.*oos:\\([0-9]*\\).*/\\1/p}}' /proc/drbd",
            self.minor
        );
        let text = self.shell(&line);
        text.trim().parse().expect("a number of KiB")
    }

    /// Waits until the line of `/proc/drbd` matches this extended regular expression.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for(&self, pattern: &str) {
        let turns = STATE_LIMIT_S * 10;
        let line = format!(
            "n=0; until grep -qE '^ *{}: {pattern}' /proc/drbd; do n=$((n+1)); [ $n -lt {turns} ] || exit 1; sleep 0.1; done",
            self.minor
        );
        let ended = self
            .machine
            .exec(&line, Duration::from_secs(STATE_LIMIT_S * 3));
        assert_eq!(
            ended.code,
            Some(0),
            "the kernel does not reach {pattern}; it is {}\n{}",
            self.state(),
            self.log()
        );
    }

    /// Waits for connection state, roles and disk states.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn wait_state(&self, conn: &str, roles: &str, disks: &str) {
        self.wait_for(&format!("cs:{conn} ro:{roles} ds:{disks} "));
    }

    /// Writes through the device, past every cache, and flushes.
    ///
    /// # Panics
    /// When the device refuses.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.write_with(offset, data, "conv=notrunc,fsync oflag=direct,seek_bytes");
    }

    /// Writes through the device with these words for `dd`.
    ///
    /// # Panics
    /// When the device refuses.
    pub fn write_with(&self, offset: u64, data: &[u8], words: &str) {
        self.write_to(&self.device(), offset, data, words);
    }

    /// Writes the backing disk beneath DRBD, which does not hear of it; past every cache.
    ///
    /// # Panics
    /// When the disk refuses.
    pub fn write_beneath(&self, offset: u64, data: &[u8]) {
        let words = "conv=notrunc,fsync oflag=direct,seek_bytes";
        let disk = format!("/dev/mapper/disk{}", self.minor);
        self.write_to(&disk, offset, data, words);
    }

    fn write_to(&self, device: &str, offset: u64, data: &[u8], words: &str) {
        let file = format!("{}.{offset}.data", self.minor);
        let path = self.machine.share().join(&file);
        fs::write(&path, data).expect("write data");
        let block = if data.len().is_multiple_of(65536) {
            65536
        } else if data.len().is_multiple_of(4096) {
            4096
        } else {
            512
        };
        self.shell(&format!(
            "dd if=/share/{file} of={device} bs={block} seek={offset} iflag=fullblock {words}"
        ));
        fs::remove_file(path).ok();
    }

    /// Reads through the device, past every cache.
    ///
    /// # Panics
    /// When the device refuses.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let file = format!("{}.{offset}.read", self.minor);
        self.shell(&format!(
            "dd if={} of=/share/{file} bs=4096 skip={offset} count={length} iflag=direct,skip_bytes,count_bytes",
            self.device()
        ));
        let path = self.machine.share().join(&file);
        let data = fs::read(&path).expect("read data");
        fs::remove_file(path).ok();
        data
    }

    /// Size of the device in bytes.
    ///
    /// # Panics
    /// When it has none.
    pub fn device_bytes(&self) -> u64 {
        let text = self.shell(&format!("cat /sys/block/drbd{}/size", self.minor));
        text.trim().parse::<u64>().expect("a size") * 512
    }

    /// The contents of the backing disk, read behind the kernel's back.
    ///
    /// # Panics
    /// When the machine's disk cannot be read.
    pub fn disk(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.machine
            .open_disk()
            .read_exact_at(&mut data, self.slice() + offset)
            .expect("read the machine's disk");
        data
    }

    /// Writes the backing disk behind the kernel's back; only while nothing is configured.
    ///
    /// # Panics
    /// When the machine's disk cannot be written.
    pub fn fill(&self, offset: u64, data: &[u8]) {
        self.machine
            .open_disk()
            .write_all_at(data, self.slice() + offset)
            .expect("write the machine's disk");
    }

    /// What the kernel said about this resource.
    pub fn messages(&self) -> Vec<String> {
        messages::of_resource(&self.machine.messages(), &self.name, self.minors())
    }

    /// The same as text.
    pub fn log(&self) -> String {
        let messages = self.messages();
        let tail = &messages[messages.len().saturating_sub(120)..];
        format!("--- the kernel of {}\n{}\n", self.name, tail.join("\n"))
    }

    /// Fails when the kernel said something that a healthy pair does not say and that was not announced.
    ///
    /// # Panics
    /// Then.
    pub fn judge_messages(&self, announced: &[&str]) {
        let strange = messages::judge(&self.messages(), &self.name, announced);
        assert!(
            strange.is_empty(),
            "the kernel said:\n  {}\n{}",
            strange.join("\n  "),
            self.log()
        );
        let trouble = messages::of_trouble(&self.machine.messages());
        assert!(
            trouble.is_empty(),
            "the kernel is in trouble:\n{}",
            trouble.join("\n")
        );
    }
}

impl Drop for KernelNode<'_> {
    fn drop(&mut self) {
        if self.life == Life::View {
            return;
        }
        let name = &self.name;
        let mut line = format!("drbdadm down {name}");
        for minor in self.minors() {
            line.push_str(&format!("; DM_DISABLE_UDEV=1 dmsetup remove disk{minor}"));
            if self.meta == Meta::External {
                line.push_str(&format!("; DM_DISABLE_UDEV=1 dmsetup remove meta{minor}"));
            }
        }
        // The configuration stays: every other drbdadm reads it too, and one under way would miss it.
        // The test is over: a failure here changes nothing, and a crashed machine cannot answer.
        let quiet = std::panic::AssertUnwindSafe(|| {
            self.machine.exec(&line, Duration::from_secs(20));
        });
        if !std::thread::panicking() {
            std::panic::catch_unwind(quiet).ok();
        }
    }
}

/// Whether a backing disk works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Good,
    /// Every request fails.
    Failing,
}
