//! Goal: whatever the two go through in whatever order, their disks are equal and hold what was written.
//! Method: random steps from a seed (`TANDEM_KERNEL_SEED`, `TANDEM_KERNEL_STEPS`), a model of the contents, and a
//! comparison of both disks with it after every step.

use tandem_tests::e2e::client::Fua;
use tandem_tests::kernel::{Couple, Machine, Setup, noise};

const BYTES: usize = 4 << 20;

struct Soak {
    couple: Couple<'static>,
    contents: Vec<u8>,
    state: u64,
}

impl Soak {
    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    /// A place of up to 128 KiB, in sectors.
    fn place(&mut self) -> (u64, Vec<u8>) {
        let sectors = 1 + self.random(256);
        let start = self.random(BYTES as u64 / 512 - sectors);
        let data = noise(self.state, sectors as usize * 512);
        (start * 512, data)
    }

    fn remember(&mut self, offset: u64, data: &[u8]) {
        self.contents[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }

    fn kernel_writes(&mut self) {
        let (offset, data) = self.place();
        self.couple.kernel.write(offset, &data);
        self.remember(offset, &data);
    }

    fn tandem_writes(&mut self) {
        let mut client = self.couple.client();
        for _ in 0..8 {
            let (offset, mut data) = self.place();
            match self.random(8) {
                0 => {
                    client.write_zeroes(offset, data.len() as u32).unwrap();
                    data.fill(0);
                }
                1 => client.write(offset, &data, Fua::Yes).unwrap(),
                _ => client.write(offset, &data, Fua::No).unwrap(),
            }
            self.remember(offset, &data);
        }
        client.flush().unwrap();
        client.disconnect().unwrap();
    }

    fn kernel_is(&self, primary: bool) {
        let word = if primary { "primary" } else { "secondary" };
        self.couple.kernel.must(word);
    }

    fn tandem(&self, word: &str) {
        self.couple.tandem.must(&[word, "r0"]);
    }

    fn in_sync(&self) {
        self.couple.wait_connected("UpToDate/UpToDate");
    }

    fn tandem_returns(&mut self) {
        self.couple.tandem.start();
        self.tandem("up");
        self.in_sync();
    }

    fn step(&mut self) -> &'static str {
        match self.random(8) {
            0 => {
                self.kernel_is(true);
                self.kernel_writes();
                self.tandem("disconnect");
                self.couple.kernel.wait_for("cs:WFConnection");
                self.kernel_writes();
                self.kernel_is(false);
                self.tandem("connect");
                "the kernel writes, Tandem disconnects"
            }
            1 => {
                self.tandem("primary");
                self.tandem_writes();
                self.couple.kernel.must("disconnect");
                self.couple
                    .tandem
                    .wait_state("WFConnection", "UpToDate/DUnknown");
                self.tandem_writes();
                self.tandem("secondary");
                self.couple.kernel.must("connect");
                "Tandem writes, the kernel disconnects"
            }
            2 => {
                self.kernel_is(true);
                self.couple.tandem.kill();
                self.kernel_writes();
                self.couple.kernel.wait_for("cs:WFConnection");
                self.tandem_returns();
                self.kernel_is(false);
                "Tandem as Secondary is killed"
            }
            3 => {
                self.tandem("primary");
                self.tandem_writes();
                self.couple.tandem.kill();
                self.couple.kernel.wait_for("cs:WFConnection");
                self.kernel_is(true);
                self.kernel_writes();
                self.tandem_returns();
                self.kernel_is(false);
                "Tandem as Primary is killed, the kernel takes over"
            }
            other => self.step_of_disks(other),
        }
    }

    fn step_of_disks(&mut self, choice: u64) -> &'static str {
        match choice {
            4 => {
                self.kernel_is(true);
                self.tandem("detach");
                self.kernel_writes();
                self.tandem("attach");
                self.in_sync();
                self.kernel_is(false);
                "Tandem as Secondary detaches"
            }
            5 => {
                self.tandem("primary");
                self.couple.kernel.must("detach");
                self.tandem_writes();
                self.couple.kernel.must("attach");
                self.in_sync();
                self.tandem("secondary");
                "the kernel as Secondary detaches"
            }
            6 => {
                self.couple.kernel.must("down");
                self.couple
                    .tandem
                    .wait_state("WFConnection", "UpToDate/DUnknown");
                self.tandem("primary");
                self.tandem_writes();
                self.couple.kernel.must("up");
                self.in_sync();
                self.tandem("secondary");
                "the kernel is down meanwhile"
            }
            _ => {
                self.tandem("primary");
                self.tandem("detach");
                self.tandem_writes();
                self.tandem("attach");
                self.in_sync();
                self.tandem("secondary");
                "Tandem as Primary loses its disk"
            }
        }
    }

    fn check(&self, step: usize, what: &str) {
        self.in_sync();
        self.couple.compare_disks();
        let found = self.couple.kernel.disk(0, BYTES as u64);
        let wrong = found
            .chunks(512)
            .zip(self.contents.chunks(512))
            .position(|(found, wanted)| found != wanted);
        assert_eq!(
            wrong,
            None,
            "step {step} ({what}): this sector is wrong on both disks\n{}{}",
            self.couple.tandem.log(),
            self.couple.kernel.log()
        );
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

#[test]
fn random_lives_end_with_equal_and_right_disks() {
    let seed = number("TANDEM_KERNEL_SEED", 1);
    let steps = number("TANDEM_KERNEL_STEPS", 8) as usize;
    let couple = Couple::synced(Machine::shared(), Setup::default());
    couple.may_say(super::crash::LOSS);
    let mut soak = Soak {
        couple,
        contents: vec![0; BYTES],
        state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
    };
    for step in 0..steps {
        let what = soak.step();
        println!("seed {seed}, step {step}: {what}");
        soak.check(step, what);
    }
    soak.couple.finish();
}
