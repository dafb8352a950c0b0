//! Two Tandem nodes as one that is compared.

use tempfile::TempDir;

use super::nodes::{Backing, Link, Nodes, RESOURCE, Setup, Words};
use super::{Client, Contender, Running, Site, addresses, logs_in};
use crate::Failure;
use crate::load::Endpoint;
use crate::process::{Stop, wait_for};
use crate::rows::AL_EXTENTS;

pub(super) fn start(
    protocol: char,
    site: &Site,
    dir: TempDir,
    stop: &Stop,
) -> Result<Running, Failure> {
    let nbd_tcp = match site.client {
        Client::Unix => None,
        Client::Tcp => Some(addresses::fresh()?),
    };
    let setup = Setup {
        backing: Backing::Filled(site.device_bytes),
        links: vec![Link::direct()?],
        words: Words {
            net: format!("protocol {protocol}; connect-int 1;"),
            disk: format!("al-extents {AL_EXTENTS};"),
        },
        nbd_tcp,
    };
    let pair = Nodes::running(setup, site.tandem.as_ref(), dir, stop)?;
    pair.nodes[0].must(&["primary", RESOURCE])?;
    let front = match nbd_tcp {
        None => pair.nodes[0].endpoint(RESOURCE),
        Some(address) => Endpoint::tcp(address, "r0/0"),
    };
    let running = Running {
        contender: Contender::Tandem(protocol),
        endpoint: front.clone(),
        servers: pair.servers.into_iter().flatten().collect(),
        notes: Vec::new(),
        nodes: pair.nodes.to_vec(),
        _dir: pair.dir,
    };
    let logs = || logs_in(running._dir.path());
    wait_for("Tandem's export", stop, || front.probe().ok(), logs)?;
    Ok(running)
}
