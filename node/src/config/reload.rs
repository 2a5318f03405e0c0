//! Reads the configuration again from its sources, applies the options that a running node can change, and
//! lists those that need a restart.

use std::path::PathBuf;

use super::{
    Config,
    error::ConfigError,
    options::{Environment, Options},
};

/// Inputs of a configuration.
#[derive(Clone, Default)]
pub(super) struct ConfigSource {
    pub(super) flags: Options,
    pub(super) file: Option<PathBuf>,
    pub(super) environment: Environment,
    pub(super) roles: Vec<String>,
}

/// Always equal: configurations are compared by their values, not by their inputs.
impl PartialEq for ConfigSource {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Without the environment, which may contain a token.
impl std::fmt::Debug for ConfigSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigSource").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Config {
    /// Reads the same flags, environment and files again.
    ///
    /// # Errors
    /// The first invalid option, with its name. This configuration is unchanged.
    pub fn reload(&self) -> Result<Self, ConfigError> {
        let ConfigSource { flags, file, environment, roles } = &self.source;
        let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
        Self::load(flags.clone(), file.clone(), environment, &roles)
    }

    /// Applies what a running node can change: `join`, `allow`, `tag` and `zone`. Returns the other options
    /// that differ; they keep their values until a restart.
    pub fn take_over(&mut self, new: Self) -> Vec<&'static str> {
        let waiting = self.waiting_options(&new);
        (self.join, self.allowed, self.tags, self.zone) = (new.join, new.allowed, new.tags, new.zone);
        waiting
    }

    /// Returns the options that differ and need a restart.
    fn waiting_options(&self, new: &Self) -> Vec<&'static str> {
        // The pattern has no `..`, so a new option must be added to one of the two lists.
        let Self {
            join: _,
            allowed: _,
            tags: _,
            zone: _,
            warnings: _,
            source: _,
            roles,
            name,
            cluster,
            http,
            swarm,
            gateway,
            gateway_options,
            dns,
            dns_ttl,
            grpc,
            jsonrpc_tcp,
            advertise,
            advertise_http,
            mdns,
            cluster_key,
            data_dir,
            socket,
            demo,
            replicas_expected,
            log_retention,
            allowed_hosts,
            trusted_proxies,
            open,
            api_token_file,
            private,
            loopback_needs_token,
            max_connections,
            max_streams,
            services_dir,
            allow_exec_checks,
            log_format,
        } = self;
        let differs = [
            ("role", *roles != new.roles),
            ("name", *name != new.name),
            ("cluster", *cluster != new.cluster),
            ("http", *http != new.http),
            ("swarm", *swarm != new.swarm),
            ("gateway", *gateway != new.gateway),
            ("gateway-allow", gateway_options.allow != new.gateway_options.allow),
            ("gateway-routes", gateway_options.routes != new.gateway_options.routes),
            ("dns", *dns != new.dns),
            ("dns-ttl", *dns_ttl != new.dns_ttl),
            ("grpc", *grpc != new.grpc),
            ("jsonrpc-tcp", *jsonrpc_tcp != new.jsonrpc_tcp),
            ("advertise", *advertise != new.advertise),
            ("advertise-http", *advertise_http != new.advertise_http),
            ("no-mdns", *mdns != new.mdns),
            ("key-file", *cluster_key != new.cluster_key),
            ("data-dir", *data_dir != new.data_dir),
            ("socket", *socket != new.socket),
            ("demo", *demo != new.demo),
            ("replicas-expected", *replicas_expected != new.replicas_expected),
            ("log-max-age", log_retention.age != new.log_retention.age),
            ("log-max-bytes", log_retention.bytes != new.log_retention.bytes),
            ("allow-host", *allowed_hosts != new.allowed_hosts),
            ("trusted-proxy", *trusted_proxies != new.trusted_proxies),
            ("open", *open != new.open),
            ("api-token-file", *api_token_file != new.api_token_file),
            ("private", *private != new.private),
            ("loopback-needs-token", *loopback_needs_token != new.loopback_needs_token),
            ("max-connections", *max_connections != new.max_connections),
            ("max-streams", *max_streams != new.max_streams),
            ("services-dir", *services_dir != new.services_dir),
            ("allow-exec-checks", *allow_exec_checks != new.allow_exec_checks),
            ("log-format", *log_format != new.log_format),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(option, _)| option).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn loaded(file: &std::path::Path) -> Config {
        let flags = Options { ephemeral: Some(true), name: Some("a".into()), ..Options::default() };
        Config::load(flags, Some(file.into()), &Environment::default(), &["log", "grading"]).unwrap()
    }

    #[test]
    fn changeable_options_are_applied_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        fs::write(&file, "join = ['a']\nzone = 'z1'\nname = 'x'\n").unwrap();
        let mut config = loaded(&file);
        fs::write(
            &file,
            "join = ['a', 'b']\nzone = 'z2'\ntag = ['t']\nname = 'y'\nrole = ['log']\nhttp = 1\n",
        )
        .unwrap();
        let new = config.reload().unwrap();
        // The flag still outranks the file.
        assert_eq!(config.take_over(new), ["role", "http"]);
        assert_eq!((config.join.len(), config.zone.as_deref()), (2, Some("z2")));
        assert_eq!((config.tags.as_slice(), config.roles.len()), (["t".to_owned()].as_slice(), 0));
        let again = config.reload().unwrap();
        assert_eq!(config.take_over(again), ["role", "http"], "until a restart");
    }

    #[test]
    fn an_invalid_file_is_named_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        fs::write(&file, "zone = 'z1'\n").unwrap();
        let config = loaded(&file);
        for (text, part) in
            [("jion = ['a']\n", "jion"), ("zone = 'a/b'\n", "zone"), ("zone = \n", "node.toml")]
        {
            fs::write(&file, text).unwrap();
            let error = config.reload().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_token_in_the_environment_is_not_shown() {
        let environment: Environment = [("HEARSAY_TOKEN", "s3cret")].into_iter().collect();
        let flags = Options { ephemeral: Some(true), ..Options::default() };
        let config = Config::load(flags, None, &environment, &[]).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
