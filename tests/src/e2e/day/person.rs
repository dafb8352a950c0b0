//! A person who looks after some resources all day: clients come and go, links are taken away and given back, roles change places.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::fleet::{Fleet, Side, first_primary, name};
use super::ledger::Ledger;
use crate::e2e::client::Client;
use crate::e2e::node::STATE_LIMIT;
use crate::e2e::pair::CLIENT_LIMIT;
use crate::e2e::proxy::{Flow, Passage, Proxy};
use crate::e2e::wait;

/// Blocks of each client's part of a device.
const BLOCKS: u64 = 1024;

/// Writes of a client that comes and goes.
const VISIT_WRITES: u64 = 24;

/// Between two writes of a client that stays.
const RESIDENT_PAUSE: Duration = Duration::from_millis(60);

/// Of the bytes of a slow link, one way.
const SLOW: Duration = Duration::from_millis(15);

/// Of a narrow link, per second.
const NARROW_BYTES: u64 = 256 << 10;

/// What was done how often.
pub type Tally = BTreeMap<&'static str, u64>;

/// A client that stays and writes now and then.
#[derive(Debug)]
struct Resident {
    stop: Arc<AtomicBool>,
    told: Arc<AtomicU64>,
    thread: JoinHandle<(Ledger, Option<String>)>,
}

impl Resident {
    fn start(fleet: &Fleet, side: Side, number: usize, mut ledger: Ledger) -> Resident {
        let mut client = fleet.client(side, number);
        let (stop, told) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, told_too) = (Arc::clone(&stop), Arc::clone(&told));
        let thread = std::thread::spawn(move || {
            let mut dice = Dice(ledger.writes() ^ 0x5eed_0000 ^ number as u64);
            while !stopped.load(Ordering::SeqCst) {
                let step = turn(&mut ledger, &mut client, &mut dice);
                if let Err(error) = step {
                    return (ledger, Some(error.to_string()));
                }
                told_too.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(RESIDENT_PAUSE);
            }
            let left = client.disconnect();
            (ledger, left.err().map(|error| error.to_string()))
        });
        Resident { stop, told, thread }
    }

    /// Ends it; what went wrong, if anything did.
    fn end(self) -> (Ledger, Option<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("a client that stays")
    }
}

/// One write, and sometimes a look at what is there, or a flush.
fn turn(ledger: &mut Ledger, client: &mut Client, dice: &mut Dice) -> std::io::Result<()> {
    let draw = dice.draw();
    ledger.write(client, draw)?;
    match draw >> 50 & 15 {
        0 => client.flush(),
        1 | 2 => ledger.look(client, dice.draw()),
        _ => Ok(()),
    }
}

/// xorshift: enough to choose blocks and deeds.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

/// Whether a client stays on a resource between the deeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// One does.
    Let,
    /// None does.
    Empty,
}

/// A resource in a person's care.
#[derive(Debug)]
pub struct Ward {
    /// Its number.
    pub number: usize,
    /// Where it is Primary now.
    pub primary: Side,
    tenancy: Tenancy,
    visitors: Ledger,
    staying: Option<Ledger>,
    resident: Option<Resident>,
}

impl Ward {
    /// A resource that nobody has written to yet.
    #[must_use]
    pub fn new(number: usize, tenancy: Tenancy) -> Ward {
        let run = 1000 + number as u64;
        Ward {
            number,
            primary: first_primary(number),
            tenancy,
            visitors: Ledger::new(run, 1, 0, BLOCKS),
            staying: Some(Ledger::new(run, 2, BLOCKS, BLOCKS)),
            resident: None,
        }
    }

    /// The client that stays comes, if there is one.
    pub fn open(&mut self, fleet: &Fleet) {
        if self.tenancy == Tenancy::Let && self.resident.is_none() {
            let ledger = self.staying.take().expect("nobody stays yet");
            self.resident = Some(Resident::start(fleet, self.primary, self.number, ledger));
        }
    }

    /// The client that stays goes. Returns what it suffered, if anything.
    pub fn close(&mut self) -> Option<String> {
        let (ledger, trouble) = self.resident.take()?.end();
        self.staying = Some(ledger);
        trouble
    }

    /// Turns that the client that stays has had since it came.
    pub fn turns(&self) -> Option<u64> {
        let told = |resident: &Resident| resident.told.load(Ordering::SeqCst);
        self.resident.as_ref().map(told)
    }

    /// Writes that were answered.
    pub fn writes(&self) -> u64 {
        self.visitors.writes() + self.staying.as_ref().map_or(0, Ledger::writes)
    }

    /// What is wrong with a device's contents.
    pub fn faults(&self, device: &[u8]) -> Vec<String> {
        let staying = self.staying.iter().flat_map(|ledger| ledger.faults(device));
        let faults = self.visitors.faults(device).into_iter().chain(staying);
        let words = |fault| format!("{}: {fault}", name(self.number));
        faults.map(words).collect()
    }
}

/// The person.
#[derive(Debug)]
pub struct Person<'a> {
    fleet: &'a Fleet,
    wards: Vec<Ward>,
    dice: Dice,
    tally: Tally,
}

impl<'a> Person<'a> {
    /// Somebody who looks after `wards`.
    #[must_use]
    pub fn new(fleet: &'a Fleet, wards: Vec<Ward>, seed: u64) -> Person<'a> {
        Person {
            fleet,
            wards,
            dice: Dice(seed),
            tally: Tally::new(),
        }
    }

    /// The clients that stay come.
    pub fn open(&mut self) {
        for ward in &mut self.wards {
            ward.open(self.fleet);
        }
    }

    /// The clients that stay go, and everything comes to rest.
    ///
    /// # Panics
    /// When a client suffered something, or a pair does not come to rest.
    pub fn close(&mut self) {
        for ward in &mut self.wards {
            let trouble = ward.close();
            let resource = name(ward.number);
            assert!(
                trouble.is_none(),
                "{resource}: {trouble:?}\n{}",
                self.fleet.logs()
            );
            self.fleet.settle(ward.number);
        }
    }

    /// The end of the day: the resources, and what was done how often.
    #[must_use]
    pub fn leave(self) -> (Vec<Ward>, Tally) {
        (self.wards, self.tally)
    }

    /// What was done so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// One deed, drawn.
    ///
    /// # Panics
    /// When something is not as it should be.
    pub fn act(&mut self) {
        let index = self.dice.below(self.wards.len() as u64) as usize;
        let number = self.wards[index].number;
        if self.dice.below(3) == 0 && self.fleet.proxies(number).is_some() {
            return self.disturb(index);
        }
        match self.dice.below(16) {
            0..=4 => self.visit(index),
            5..=10 => self.part_and_meet(index),
            11 | 12 => self.switch_over(index),
            13 => self.detach_and_attach(index),
            14 => self.invalidate(index),
            _ => self.verify(index),
        }
    }

    fn count(&mut self, deed: &'static str) {
        *self.tally.entry(deed).or_default() += 1;
    }

    fn command(&self, side: Side, word: &str, index: usize) {
        let resource = name(self.wards[index].number);
        self.fleet.node(side).must(&[word, &resource]);
    }

    /// A client comes, looks, writes, and goes: politely, or it vanishes.
    fn visit(&mut self, index: usize) {
        let ward = &mut self.wards[index];
        let mut client = self.fleet.client(ward.primary, ward.number);
        let trouble = |error: std::io::Error| -> ! {
            let logs = self.fleet.logs();
            panic!("a client of {}: {error}\n{logs}", name(ward.number))
        };
        for _ in 0..VISIT_WRITES {
            if let Err(error) = turn(&mut ward.visitors, &mut client, &mut self.dice) {
                trouble(error);
            }
        }
        if self.dice.below(3) == 0 {
            drop(client);
        } else if let Err(error) = client.flush().and_then(|()| client.disconnect()) {
            trouble(error);
        }
        self.count("clients that came and went");
    }

    /// A command takes the link away; a client writes meanwhile; another command gives it back.
    fn part_and_meet(&mut self, index: usize) {
        let side = self.any_side();
        let number = self.wards[index].number;
        self.command(side, "disconnect", index);
        self.visit(index);
        self.fleet.wait_alone(side.other(), number);
        self.command(side, "connect", index);
        self.fleet.settle(number);
        self.count("disconnect and connect");
    }

    fn any_side(&mut self) -> Side {
        if self.dice.below(2) == 0 {
            Side::Alpha
        } else {
            Side::Bravo
        }
    }

    fn switch_over(&mut self, index: usize) {
        let trouble = self.wards[index].close();
        assert!(trouble.is_none(), "{trouble:?}\n{}", self.fleet.logs());
        let ward = &mut self.wards[index];
        let (old, resource) = (ward.primary, name(ward.number));
        // A client that vanished a moment ago may still be there.
        let demoted =
            || (self.fleet.node(old).adm(&["secondary", &resource]).code == Some(0)).then_some(());
        wait::until("a demotion", STATE_LIMIT, demoted, || self.fleet.logs());
        self.fleet.node(old.other()).must(&["primary", &resource]);
        ward.primary = old.other();
        ward.open(self.fleet);
        self.visit(index);
        self.count("switch-overs");
    }

    fn detach_and_attach(&mut self, index: usize) {
        let secondary = self.wards[index].primary.other();
        self.command(secondary, "detach", index);
        self.visit(index);
        self.command(secondary, "attach", index);
        self.fleet.settle(self.wards[index].number);
        self.count("detach and attach");
    }

    fn invalidate(&mut self, index: usize) {
        let secondary = self.wards[index].primary.other();
        self.command(secondary, "invalidate", index);
        self.visit(index);
        self.fleet.settle(self.wards[index].number);
        self.count("full resyncs");
    }

    fn verify(&mut self, index: usize) {
        self.command(self.wards[index].primary, "verify", index);
        self.visit(index);
        self.fleet.settle(self.wards[index].number);
        self.count("verifies");
    }

    /// The network does something to the link while a client writes.
    fn disturb(&mut self, index: usize) {
        let ward = &self.wards[index];
        let (number, primary) = (ward.number, ward.primary);
        let fleet = self.fleet;
        let proxies = fleet.proxies(number).expect("its link can be disturbed");
        let each = |deed: &dyn Fn(&Proxy)| proxies.iter().for_each(deed);
        let block = |flows: &[Flow], passage: Passage| {
            each(&|proxy| flows.iter().for_each(|flow| proxy.block(*flow, passage)));
        };
        match self.dice.below(5) {
            0 => {
                each(&Proxy::cut);
                self.visit(index);
                fleet.wait_alone(primary, number);
                each(&Proxy::heal);
                self.count("links cut");
            }
            1 => {
                block(&[Flow::In, Flow::Out], Passage::Blocked);
                self.visit(index);
                fleet.wait_alone(primary, number);
                block(&[Flow::In, Flow::Out], Passage::Free);
                self.count("silent peers");
            }
            2 => {
                // Through one proxy only one way passes: half open, in either sense.
                let way = if self.dice.below(2) == 0 {
                    Flow::In
                } else {
                    Flow::Out
                };
                block(&[way], Passage::Blocked);
                self.visit(index);
                fleet.wait_alone(primary, number);
                block(&[way], Passage::Free);
                self.count("half-open links");
            }
            3 => {
                each(&|proxy| proxy.delay(SLOW));
                self.visit(index);
                each(&|proxy| proxy.delay(Duration::ZERO));
                self.count("slow links");
            }
            _ => {
                each(&|proxy| proxy.throttle(NARROW_BYTES));
                self.visit(index);
                each(&|proxy| proxy.throttle(0));
                self.count("narrow links");
            }
        }
        fleet.settle(number);
    }
}

const _: () = assert!(
    CLIENT_LIMIT.as_secs() > 20,
    "a silent peer is dropped well before a client gives up"
);
