//! The configuration of this node: the file, who this node is, and the targets of a command
//! (docs/spec/config-and-cli.md 1.1, 1.6, 4.2).

use std::collections::BTreeSet;
use std::io::{IsTerminal, Read};
use std::net::UdpSocket;
use std::path::Path;

use tandem_config::diagnostics::summarise_warnings;
use tandem_config::{
    Code, Config, HostKind, LoadError, Node, ResolveError, ResolvedResource, Style,
};

use crate::arguments::Arguments;
use crate::failure::{CANNOT_RUN, CONFIGURATION, Failure, USAGE};
use crate::invocation::{Invocation, quoted};
use crate::output::err;
use crate::words::{Scope, Word};

/// Largest configuration taken from standard input, in bytes.
const STDIN_BYTES_MAX: u64 = 16 << 20;

/// A configuration and the node that reads it.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) config: Config,
    pub(crate) node: Node,
}

/// What a command works on.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) view: ResolvedResource,
    /// One volume of it, or all.
    pub(crate) volume: Option<u16>,
}

impl Target {
    /// The volumes it stands for.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = &tandem_config::ResolvedVolume> {
        let wanted = self.volume;
        self.view
            .volumes
            .iter()
            .filter(move |volume| wanted.is_none_or(|number| number == volume.number))
    }

    /// `R` or `R/V`.
    pub(crate) fn name(&self) -> String {
        match self.volume {
            Some(number) => format!("{}/{number}", self.view.name),
            None => self.view.name.clone(),
        }
    }
}

/// The name of this node: `__DRBD_NODE__`, else `etc/hostname` below a `--root` (so that the nodes of one machine have
/// names of their own), else `uname -n`.
pub(crate) fn node_name(invocation: &Invocation) -> String {
    if let Ok(name) = std::env::var("__DRBD_NODE__")
        && !name.is_empty()
    {
        return name;
    }
    let file = invocation.places().etc_dir().join("hostname");
    let below_root = invocation.root.is_some();
    match below_root.then(|| std::fs::read_to_string(file)) {
        Some(Ok(name)) if !name.trim().is_empty() => name.trim().to_owned(),
        _ => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    }
}

/// Whether an address is one of this node's: only then a socket can be bound to it.
fn is_local(ip: std::net::IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

impl Configuration {
    /// Reads the configuration.
    pub(crate) fn load(invocation: &Invocation, arguments: &Arguments) -> Result<Self, Failure> {
        let path = invocation.config_path();
        let loaded = if path == Path::new("-") {
            let mut text = Vec::new();
            std::io::stdin()
                .lock()
                .take(STDIN_BYTES_MAX)
                .read_to_end(&mut text)
                .map_err(|error| {
                    Failure::new(CANNOT_RUN, format!("cannot read standard input: {error}"))
                })?;
            tandem_config::load_text("STDIN", &text, Path::new("."))
        } else {
            let mut paths = vec![path.as_path()];
            paths.extend(arguments.value("config-to-test").map(Path::new));
            tandem_config::load_all(&paths)
        };
        let config = loaded.map_err(|error| refused(invocation, &error))?;
        let floating = config.resources.iter().flat_map(|resource| &resource.hosts);
        let addresses: BTreeSet<String> = floating
            .filter(|host| host.kind == HostKind::Floating)
            .filter_map(|host| host.address.as_ref())
            .filter(|address| address.ip_addr().is_some_and(is_local))
            .map(|address| address.ip.clone())
            .collect();
        let node = Node {
            name: node_name(invocation),
            addresses: addresses.into_iter().collect(),
        };
        Ok(Configuration { config, node })
    }

    /// Prints the warnings of reading; those about options without effect only when nobody says it better later.
    pub(crate) fn print_warnings(&self, options_too: OptionWarnings) {
        let warnings: Vec<_> = self
            .config
            .warnings
            .iter()
            .filter(|warning| {
                options_too == OptionWarnings::Print
                    || !matches!(warning.code, Code::IgnoredOption | Code::NotSupported)
            })
            .cloned()
            .collect();
        for line in summarise_warnings(&self.config.files, &warnings) {
            err(&line);
        }
    }

    /// The resources of this node, in file order.
    pub(crate) fn resources(&self) -> Result<Vec<ResolvedResource>, Failure> {
        self.config
            .resources_for(&self.node)
            .map_err(|error| Failure::new(CONFIGURATION, error.to_string()))
    }

    /// The resource of this name.
    pub(crate) fn resource(
        &self,
        invocation: &Invocation,
        name: &str,
    ) -> Result<ResolvedResource, Failure> {
        self.config
            .resource_for(name, &self.node)
            .map_err(|error| match error {
                ResolveError::NotHere { hosts, .. } => self.not_here(invocation, name, &hosts),
                ambiguous => Failure::new(CONFIGURATION, ambiguous.to_string()),
            })
    }

    fn not_here(&self, invocation: &Invocation, name: &str, hosts: &[String]) -> Failure {
        let failure = Failure::new(
            USAGE,
            format!("'{name}' not defined in your config (for this host)."),
        );
        if !hosts.is_empty() {
            return failure
                .line(format!(
                    "It is defined for {}; this host is {}.",
                    hosts.join(" and "),
                    self.node.name
                ))
                .next(format!(
                    "hostname {}   # or put {} after 'on' in {}",
                    hosts[0],
                    self.node.name,
                    invocation.config_path().display()
                ));
        }
        let names = self.config.resources.iter().map(|r| r.name.as_str());
        match tandem_config::diagnostics::nearest(name, names) {
            Some(meant) => failure.next(invocation.adm(&format!("dump {meant}"))),
            None => failure.next(invocation.adm("sh-resources")),
        }
    }

    /// Exit 10 for a resource that the daemon does not have: what can be typed depends on whether the configuration
    /// (`None`: it cannot be read) has it.
    pub(crate) fn not_up(
        invocation: &Invocation,
        configuration: Option<&Configuration>,
        name: &str,
    ) -> Failure {
        let failure = Failure::new(CONFIGURATION, format!("{name}: No such resource"));
        let path = invocation.config_path();
        let path = path.display();
        let Some(configuration) = configuration else {
            return failure
                .line(format!("It is not up, and {path} cannot be read."))
                .next(invocation.adm("sh-nop"));
        };
        let Err(refusal) = configuration.resource(invocation, name) else {
            return failure
                .line("It is in the configuration, but it is not up.")
                .next(invocation.adm(&format!("up {}", quoted(name))));
        };
        if configuration.config.resource(name).is_some() {
            // Of other hosts: it says of which.
            let failure = refusal.lines.into_iter().fold(failure, Failure::line);
            return match refusal.next {
                Some(next) => failure.next(next),
                None => failure,
            };
        }
        let resources = configuration.resources().unwrap_or_default();
        let names: Vec<&str> = resources.iter().map(|view| view.name.as_str()).collect();
        let has = match &names[..] {
            [] => "nothing for this host".to_owned(),
            names => names.join(", "),
        };
        let failure = failure.line(format!("It is neither up nor in {path}, which has: {has}"));
        let meant = tandem_config::diagnostics::nearest(name, names.iter().copied());
        let words = meant.map_or_else(
            || "status".to_owned(),
            |meant| format!("status {}", quoted(meant)),
        );
        failure.next(invocation.tandem(&words))
    }

    /// The targets of a command, in the order in which they were given.
    pub(crate) fn targets(
        &self,
        invocation: &Invocation,
        word: &Word,
        arguments: &Arguments,
    ) -> Result<Vec<Target>, Failure> {
        let mut targets = Vec::new();
        for name in &arguments.targets {
            if name == "all" {
                targets.extend(self.all(invocation)?);
            } else if let Some(minor) = name
                .strip_prefix("minor-")
                .filter(|_| word.scope == Scope::Handler)
            {
                targets.push(self.minor(minor)?);
            } else {
                targets.push(self.one(invocation, word, name)?);
            }
        }
        Ok(targets)
    }

    fn all(&self, invocation: &Invocation) -> Result<Vec<Target>, Failure> {
        if self.config.resources.is_empty() {
            return Err(Failure::new(USAGE, "no resources defined!"));
        }
        let views = self.resources()?;
        if views.is_empty() {
            let failure = Failure::new(
                USAGE,
                format!(
                    "WARN: no normal resources defined for this host ({})!?\nMisspelled name of the local machine with the 'on' keyword ?",
                    self.node.name
                ),
            );
            return Err(failure.next(invocation.adm("dump")));
        }
        Ok(views
            .into_iter()
            .map(|view| Target { view, volume: None })
            .collect())
    }

    fn minor(&self, minor: &str) -> Result<Target, Failure> {
        let number: Option<u32> = minor.parse().ok();
        for view in self.resources()? {
            let volume = view
                .volumes
                .iter()
                .find(|volume| Some(volume.device.minor) == number)
                .map(|volume| volume.number);
            if volume.is_some() {
                return Ok(Target { view, volume });
            }
        }
        Err(Failure::new(
            USAGE,
            format!("'minor-{minor}' not defined in your config (for this host)."),
        ))
    }

    fn one(&self, invocation: &Invocation, word: &Word, name: &str) -> Result<Target, Failure> {
        let (name, volume) = match name.rsplit_once('/') {
            Some((resource, volume)) => (resource, Some(volume)),
            None => (name, None),
        };
        let (name, peer) = match name.split_once(':') {
            // A floating resource's or host's name may hold a colon, a resource's that is defined counts first.
            Some((resource, peer)) if self.config.resource(name).is_none() => {
                (resource, Some(peer))
            }
            _ => (name, None),
        };
        let view = self.resource(invocation, name)?;
        if let Some(peer) = peer
            && !view.peers.iter().any(|known| known.name == peer)
        {
            let known: Vec<&str> = view.peers.iter().map(|peer| peer.name.as_str()).collect();
            let failure = Failure::new(
                USAGE,
                format!("Not a valid connection ({name}:{peer}) for this host"),
            )
            .line(format!("Peers of {name}: {}", known.join(", ")));
            return Err(match known.first() {
                Some(first) => {
                    let words = format!("{} {}", word.name, quoted(&format!("{name}:{first}")));
                    failure.next(invocation.adm(&words))
                }
                None => failure.next(invocation.adm(&format!("dump {name}"))),
            });
        }
        let Some(text) = volume else {
            return Ok(Target { view, volume: None });
        };
        let number: Option<u16> = text.parse().ok();
        let known = view
            .volumes
            .iter()
            .any(|volume| Some(volume.number) == number);
        if !known {
            let failure = Failure::new(USAGE, format!("Resource '{name}' has no volume {text}"));
            return Err(failure.next(invocation.adm(&format!("dump {name}"))));
        }
        if matches!(word.scope, Scope::Resource | Scope::Connection) {
            let failure = Failure::new(
                USAGE,
                format!(
                    "'{}' works on a whole resource, not on one volume",
                    word.name
                ),
            );
            return Err(failure.next(invocation.adm(&format!("{} {name}", word.name))));
        }
        Ok(Target {
            view,
            volume: number,
        })
    }

    /// Whether the own address of a resource is configured here, unless the configuration says not to look.
    pub(crate) fn check_address(&self, view: &ResolvedResource) -> Result<(), Failure> {
        if self.config.global_options().disable_ip_verification {
            return Ok(());
        }
        let path = view.peers.first().and_then(|peer| peer.paths.first());
        let Some(address) = path.map(|path| &path.local).or(view.address.as_ref()) else {
            return Ok(());
        };
        match address.ip_addr() {
            Some(ip) if !is_local(ip) => Err(Failure::new(
                CONFIGURATION,
                format!(
                    "{}: in resource {}: IP {} not found on this host.",
                    self.config.files.place(address.at),
                    view.name,
                    address.ip
                ),
            )
            .next("ip -brief address   # the addresses that this host has")),
            _ => Ok(()),
        }
    }
}

/// Whether warnings about options without effect are printed with those of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OptionWarnings {
    Print,
    Later,
}

fn refused(invocation: &Invocation, error: &LoadError) -> Failure {
    match error {
        LoadError::Unreadable { path, source } => {
            let failure = Failure::new(
                CANNOT_RUN,
                format!("Can not open '{}': {source}", path.display()),
            );
            if invocation.config_file.is_some() {
                failure.next(format!("ls -l {}", path.display()))
            } else {
                failure.next(
                    invocation.tandem("demo") + "   # a pair to try, without any configuration",
                )
            }
        }
        LoadError::Invalid(report) if std::io::stderr().is_terminal() => {
            Failure::new(CONFIGURATION, report.render(Style::Coloured))
        }
        LoadError::Invalid(report) => Failure::new(CONFIGURATION, report.to_string()),
    }
}
