//! The configuration as XML (`dump-xml`). Source: `docs/spec/config-and-cli.md` section 5.6.

use std::fmt::Write as _;

use crate::dump::{Expansion, SECTIONS, sections_for};
use crate::model::{
    Address, Config, Connection, ConnectionSource, Host, HostKind, MetaDisk, Options, Resource,
    Sections, Value, Volume,
};

/// The whole configuration, or only the resources named.
#[must_use]
pub fn config_xml(config: &Config, only: &[&str], expansion: Expansion) -> String {
    let mut out = Xml::default();
    out.open("config", &[("file", config.files.name(0))]);
    if only.is_empty() {
        if !config.global.is_empty() {
            out.open("global", &[]);
            out.options(&config.global);
            out.close("global");
        }
        if let Some(common) = &config.common {
            out.open("common", &[]);
            out.sections(common);
            out.close("common");
        }
    }
    for resource in config
        .resources
        .iter()
        .filter(|r| only.is_empty() || only.contains(&r.name.as_str()))
    {
        out.resource(config, resource, expansion);
    }
    out.close("config");
    out.text
}

#[derive(Default)]
struct Xml {
    text: String,
    depth: usize,
}

impl Xml {
    fn tag(&mut self, name: &str, attributes: &[(&str, &str)], end: &str) {
        let indent = " ".repeat(4 * self.depth);
        // Writing to a String cannot fail.
        let _ = write!(self.text, "{indent}<{name}");
        for (key, value) in attributes {
            let _ = write!(self.text, " {key}=\"{}\"", escape(value));
        }
        self.text.push_str(end);
    }

    fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.tag(name, attributes, ">\n");
        self.depth += 1;
    }

    fn close(&mut self, name: &str) {
        self.depth -= 1;
        let indent = " ".repeat(4 * self.depth);
        let _ = writeln!(self.text, "{indent}</{name}>");
    }

    fn leaf(&mut self, name: &str, attributes: &[(&str, &str)], text: &str) {
        self.tag(name, attributes, &format!(">{}</{name}>\n", escape(text)));
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.tag(name, attributes, "/>\n");
    }

    fn options(&mut self, options: &Options) {
        for setting in options {
            let value = match &setting.value {
                Value::Text(text) => text.clone(),
                Value::Names(names) => names.join(" "),
                Value::Number(_) | Value::Switch(_) => setting.text.clone(),
            };
            self.empty("option", &[("name", setting.spec.name), ("value", &value)]);
        }
    }

    fn section(&mut self, name: &str, options: &Options) {
        if options.is_empty() {
            return;
        }
        self.open("section", &[("name", name)]);
        self.options(options);
        self.close("section");
    }

    fn sections(&mut self, sections: &Sections) {
        for section in SECTIONS {
            if let Some(options) = sections.get(*section) {
                self.section(section.keyword(), options);
            }
        }
    }

    fn resource(&mut self, config: &Config, resource: &Resource, expansion: Expansion) {
        let place = format!(
            "{}:{}",
            config.files.name(resource.at.file),
            resource.at.line
        );
        self.open(
            "resource",
            &[("name", &resource.name), ("conf-file-line", &place)],
        );
        for host in &resource.hosts {
            self.host(resource, host);
        }
        for connection in resource
            .connections
            .iter()
            .filter(|c| c.source != ConnectionSource::Implicit)
        {
            self.connection(resource, connection);
        }
        self.sections(&sections_for(config, resource, expansion));
        self.close("resource");
    }

    fn host(&mut self, resource: &Resource, host: &Host) {
        let lower = resource.stacked_on.as_deref().unwrap_or_default();
        let (tag, attributes) = match host.kind {
            HostKind::Stacked => ("stacked-on-top-of", vec![("resource", lower.to_owned())]),
            _ => ("host", vec![("name", host.name())]),
        };
        let attributes: Vec<(&str, &str)> =
            attributes.iter().map(|(k, v)| (*k, v.as_str())).collect();
        self.open(tag, &attributes);
        for volume in &host.volumes {
            self.volume(volume);
        }
        if let Some(address) = &host.address {
            self.address(address);
        }
        self.section("options", &host.options);
        self.close(tag);
    }

    fn volume(&mut self, volume: &Volume) {
        self.open("volume", &[("vnr", &volume.number.to_string())]);
        self.section("disk", &volume.disk_options);
        self.leaf(
            "device",
            &[("minor", &volume.device.minor.to_string())],
            &volume.device.path,
        );
        self.leaf("disk", &[], volume.disk.as_deref().unwrap_or("none"));
        match &volume.meta_disk {
            MetaDisk::Internal => self.leaf("meta-disk", &[], "internal"),
            MetaDisk::Indexed { device, index } => {
                self.leaf("meta-disk", &[("index", &index.to_string())], device);
            }
            MetaDisk::Flexible { device } => self.leaf("meta-disk", &[], device),
        }
        self.close("volume");
    }

    fn address(&mut self, address: &Address) {
        let port = address.port.to_string();
        self.leaf(
            "address",
            &[("family", address.family.keyword()), ("port", &port)],
            &address.ip,
        );
    }

    fn connection(&mut self, resource: &Resource, connection: &Connection) {
        self.open("connection", &[]);
        for path in &connection.paths {
            for (address, &host) in path.iter().zip(&connection.hosts) {
                self.open("host", &[("name", &resource.hosts[host].name())]);
                self.address(address);
                self.close("host");
            }
        }
        self.section("net", &connection.net);
        self.section("disk", &connection.disk);
        self.close("connection");
    }
}

/// Text for elements and attributes. Control characters have no form in XML 1.0 and become blanks.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
