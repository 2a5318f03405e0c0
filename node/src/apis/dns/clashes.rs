//! Name clashes: names that DNS does not tell apart.
//!
//! Several services or nodes may need one label. The one whose name is the label answers, else the first in
//! byte order. Tags match in any case, so a query for one spelling gets the instances of all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use hearsay_protocol::{Provider, dns_label};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
};

use crate::view::View;

/// Names that share one form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Clash {
    /// The form: a label, or a tag in lower case.
    pub(crate) form: String,
    /// The names, two at least. Of services and nodes, the first one answers.
    pub(crate) names: Vec<String>,
}

/// Finds the names of services or nodes that need one label.
pub(crate) fn clashes_of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Clash> {
    clashes(names, dns_label)
}

/// Finds the tags of one service that differ in case only.
pub(crate) fn clashes_of_tags<'a>(tags: impl IntoIterator<Item = &'a str>) -> Vec<Clash> {
    clashes(tags, |tag| Some(tag.to_ascii_lowercase()))
}

fn clashes<'a>(
    names: impl IntoIterator<Item = &'a str>,
    form_of: impl Fn(&str) -> Option<String>,
) -> Vec<Clash> {
    let mut forms: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for name in names {
        if let Some(form) = form_of(name) {
            forms.entry(form).or_default().insert(name);
        }
    }
    let several = forms.into_iter().filter(|(_, names)| names.len() > 1);
    let clashes = several.map(|(form, names)| {
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        names.sort_by_key(|name| *name != form);
        Clash { form, names }
    });
    clashes.collect()
}

/// Collector of the number of name clashes, by kind.
#[derive(Debug)]
pub(super) struct ClashGauges(pub(super) Arc<View>);

impl Collector for ClashGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let [services, nodes] = self.0.read(hearsay_protocol::ProviderTable::name_clashes);
        let tags = tag_clashes(&self.0);
        let gauge = ConstGauge::new(0u64);
        let help =
            "Labels that several names of services or nodes need in DNS, and tags that differ in case only";
        let mut family = encoder.encode_descriptor("dns_name_clashes", help, None, gauge.metric_type())?;
        for (kind, count) in [("service", services), ("node", nodes), ("tag", tags)] {
            ConstGauge::new(count as u64).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}

/// Counts the tags that differ in case only, over all services. Only services that have a tag with a capital
/// are looked at closer.
fn tag_clashes(view: &View) -> usize {
    let has_capital = |provider: &Arc<Provider>| {
        provider.instance.tags.iter().any(|tag| tag.bytes().any(|byte| byte.is_ascii_uppercase()))
    };
    let services: Vec<Vec<Arc<Provider>>> = view.read(|table| {
        let services = table.services().filter(|service| table.providers(service).any(has_capital));
        services.map(|service| table.providers(service).cloned().collect()).collect()
    });
    let tags = |providers: &Vec<Arc<Provider>>| {
        clashes_of_tags(
            providers.iter().flat_map(|provider| provider.instance.tags.iter().map(String::as_str)),
        )
        .len()
    };
    services.iter().map(tags).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_need_one_label_are_a_clash_and_the_one_that_answers_is_first() {
        let clash = |form: &str, names: &[&str]| Clash {
            form: form.into(),
            names: names.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(
            clashes_of_names(["My Web", "my.web", "web", "WEB", "other", "My Web"]),
            [clash("my-web", &["My Web", "my.web"]), clash("web", &["web", "WEB"])]
        );
        assert_eq!(clashes_of_tags(["v1", "V1", "v.1", "v2", "v2"]), [clash("v1", &["v1", "V1"])]);
    }
}
