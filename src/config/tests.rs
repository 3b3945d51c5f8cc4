//! What the configuration accepts, refuses and never shows.

use super::*;

fn sources(pairs: &[(&str, &str)]) -> Sources {
    let environment = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Sources { environment, ..Sources::default() }
}

fn mistakes(pairs: &[(&str, &str)]) -> Vec<String> {
    Config::load(&sources(pairs)).expect_err("these values are wrong").0
}

#[test]
fn every_default_is_a_good_value() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config.port, 3001);
    assert_eq!(config.bcrypt_cost, 12);
    assert!(config.registration_open);
}

#[test]
fn all_mistakes_are_reported_at_once_by_name_and_never_by_value() {
    let found = mistakes(&[
        ("PORT", "canary-one"),
        ("BCRYPT_COST", "3"),
        ("JWT_SECRET", "canary-two"),
        ("DATABASE_URL", "mysql://canary-three"),
        ("REDIS_URL", "http://canary-four"),
        ("LOG_FORMAT", "canary-five"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("ALLOWED_ORIGINS", "https://app.example/path"),
    ]);
    let all = found.join("\n");
    for name in [
        "PORT",
        "BCRYPT_COST",
        "JWT_SECRET",
        "DATABASE_URL",
        "REDIS_URL",
        "LOG_FORMAT",
        "TRUSTED_PROXIES",
        "ALLOWED_ORIGINS",
    ] {
        assert!(found.iter().any(|line| line.starts_with(&format!("{name}:"))), "{name} in {all}");
    }
    assert!(!all.contains("canary"), "{all}");
}

#[test]
fn a_mistake_is_told_once() {
    for (name, bad) in
        [("NODE_ID", "two words"), ("OTEL_TRACES_SAMPLER_ARG", "2"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "x")]
    {
        assert_eq!(mistakes(&[(name, bad)]).len(), 1, "{name}");
    }
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let mut given = sources(&[("PORT", "2"), ("HOST", "127.0.0.2")]);
    given.flags.insert("PORT".into(), "1".into());
    given.file.extend([("PORT".into(), "3".into()), ("HOST".into(), "127.0.0.3".into())]);
    given.file.insert("NODE_ID".into(), "from-file".into());

    let config = Config::load(&given).unwrap();

    assert_eq!((config.port, config.host.to_string()), (1, "127.0.0.2".into()));
    assert_eq!(config.node_id, "from-file");
}

#[test]
fn short_well_known_and_monotonous_secrets_are_refused() {
    for bad in ["short", "your-secret-key", "Your-256-bit-secret", &"a".repeat(64)] {
        assert_eq!(mistakes(&[("JWT_SECRET", bad)]).len(), 1, "{bad}");
    }
    assert!(Config::load(&sources(&[("JWT_SECRET", "0123456789abcdef0123456789abcdef")])).is_ok());
}

#[test]
fn a_cluster_node_needs_a_secret() {
    let found = mistakes(&[("REDIS_URL", "redis://127.0.0.1:6379")]);
    assert!(found[0].starts_with("JWT_SECRET:"), "{found:?}");
}

#[test]
fn a_postgres_url_needs_a_secret_and_is_one() {
    let secret = ("JWT_SECRET", "0123456789abcdef0123456789abcdef");
    for url in ["postgres://u:canary@h/db", "postgresql://u:canary@h:5433/db?sslmode=verify-full"] {
        let found = mistakes(&[("DATABASE_URL", url)]);
        assert!(found.len() == 1 && found[0].starts_with("JWT_SECRET:"), "{found:?}");
        let config = Config::load(&sources(&[("DATABASE_URL", url), secret])).unwrap();
        assert!(matches!(config.database, Database::Postgres { .. }));
        assert!(!format!("{config:?}").contains("canary"));
    }
    let found = mistakes(&[("DATABASE_URL", "postgres://u:canary@h:port/db"), secret]);
    assert!(found[0].starts_with("DATABASE_URL:") && !found[0].contains("canary"), "{found:?}");
}

#[test]
fn acks_wait_only_for_a_copy_that_there_can_be() {
    let found = mistakes(&[("DURABILITY", "replicated")]);
    assert_eq!(found, ["LITESTREAM_SOCKET: is required with DURABILITY=replicated"]);
    let socket = ("LITESTREAM_SOCKET", "/run/litestream.sock");
    let config = Config::load(&sources(&[("DURABILITY", "replicated"), socket])).unwrap();
    assert!(config.replica.is_some_and(|replica| replica.acks_wait));
    let config = Config::load(&sources(&[socket])).unwrap();
    assert!(config.replica.is_some_and(|replica| !replica.acks_wait), "its age is told all the same");
    let found = mistakes(&[
        ("DATABASE_URL", "postgres://tandem@127.0.0.1/tandem"),
        ("JWT_SECRET", "0f5b2a77c1e94d60b8a3c9d2e7f41856"),
        socket,
    ]);
    assert_eq!(found, ["LITESTREAM_SOCKET: Litestream copies SQLite databases only"]);
}

#[test]
fn an_env_file_has_comments_quotes_and_exports() {
    let text = "# comment\nA=1\nexport B = \"two words\"\nC='x # y' # why\nD=plain # why\n\n";
    let values = parse_env_file(text).unwrap();
    let get = |name: &str| values.get(name).map(String::as_str);
    assert_eq!(
        [get("A"), get("B"), get("C"), get("D")],
        [Some("1"), Some("two words"), Some("x # y"), Some("plain")]
    );
    assert!(parse_env_file("no equals sign").is_err());
}

#[test]
fn the_debug_form_shows_no_secret() {
    let config = Config::load(&sources(&[("JWT_SECRET", "canary-0123456789abcdef0123456789")])).unwrap();
    assert!(!format!("{config:?}").contains("canary"));
}

/// The names in the first column of a table, or at the start of `NAME=` lines.
fn names_in(document: &str) -> Vec<&str> {
    document
        .lines()
        .filter_map(|line| match line.strip_prefix("| `") {
            Some(rest) => rest.split('`').next(),
            None => line.trim_start_matches('#').trim_start().split_once('=').map(|(name, _)| name),
        })
        .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect()
}

#[test]
fn the_documents_list_every_setting_and_no_other() {
    let mut known: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    known.sort_unstable();
    for (document, text) in [
        ("docs/CONFIGURATION.md", include_str!("../../docs/CONFIGURATION.md")),
        (".env.example", include_str!("../../.env.example")),
    ] {
        let mut listed = names_in(text);
        listed.sort_unstable();
        listed.dedup();
        assert_eq!(listed, known, "{document}");
    }
}

#[test]
fn the_example_shows_every_default_and_sets_nothing() {
    let example = include_str!("../../.env.example");
    for setting in SETTINGS {
        let line = format!("#{}={}", setting.name, setting.default);
        assert!(example.lines().any(|shown| shown == line), "{line}");
    }
    assert_eq!(parse_env_file(example).unwrap().len(), 0);
}
