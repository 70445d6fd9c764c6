//! The syntax of names, labels, ports and addresses (RFC 1123, RFC 1035), with Kubernetes' messages.
//!
//! Each `*_faults` function gives the messages of what is wrong, none where the text is fine.

const LABEL_BYTES_MAX: usize = 63;
const SUBDOMAIN_BYTES_MAX: usize = 253;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which \
    must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
    '*.example.com', regex used for validation is \
    '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
    or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

/// Lower case alphanumeric or '-', alphanumeric at both ends.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Alphanumeric, '-', '_' or '.', alphanumeric at both ends.
fn is_qualified(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.bytes().all(inner) && edge(text.bytes().next()) && edge(text.bytes().last())
}

fn faults(text: &str, limit: usize, fine: bool, message: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > limit {
        faults.push(too_long(limit));
    }
    if !fine {
        faults.push(message.to_owned());
    }
    faults
}

/// RFC 1123 label, at most 63 bytes.
pub fn label_faults(text: &str) -> Vec<String> {
    faults(text, LABEL_BYTES_MAX, is_label(text), LABEL)
}

/// RFC 1035 label, at most 63 bytes: begins with a letter.
pub fn label_1035_faults(text: &str) -> Vec<String> {
    let fine = is_label(text) && text.starts_with(|first: char| first.is_ascii_lowercase());
    faults(text, LABEL_BYTES_MAX, fine, LABEL_1035)
}

/// RFC 1123 subdomain, at most 253 bytes.
pub fn subdomain_faults(text: &str) -> Vec<String> {
    faults(text, SUBDOMAIN_BYTES_MAX, text.split('.').all(is_label), SUBDOMAIN)
}

/// `*.` and a subdomain.
pub fn wildcard_faults(text: &str) -> Vec<String> {
    let fine = text.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_label));
    faults(text, SUBDOMAIN_BYTES_MAX, fine, WILDCARD)
}

/// A label's or annotation's key: `name` or `prefix.example.com/name`.
pub fn qualified_name_faults(key: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let parts: Vec<&str> = key.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else {
                faults
                    .extend(subdomain_faults(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            }
            *name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_BYTES_MAX {
        faults.push(format!("name part {}", too_long(LABEL_BYTES_MAX)));
    }
    if !is_qualified(name) {
        faults.push(format!("name part {QUALIFIED}"));
    }
    faults
}

/// A label's value; may be empty.
pub fn label_value_faults(text: &str) -> Vec<String> {
    faults(text, LABEL_BYTES_MAX, text.is_empty() || is_qualified(text), LABEL_VALUE)
}

/// A key of a ConfigMap's or Secret's data.
pub fn config_key_faults(text: &str) -> Vec<String> {
    let fine =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let mut faults = faults(text, SUBDOMAIN_BYTES_MAX, fine, CONFIG_KEY);
    if text == "." || text == ".." {
        faults.push(format!("must not be '{text}'"));
    } else if text.starts_with("..") {
        faults.push("must not start with '..'".to_owned());
    }
    faults
}

/// The name of an environment variable.
pub fn env_name_faults(text: &str) -> Vec<String> {
    let fine = text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=');
    if fine { Vec::new() } else { vec![ENV_NAME.to_owned()] }
}

/// A named port of a container: an IANA service name (RFC 6335).
pub fn port_name_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 15 {
        faults.push("must be no more than 15 characters".to_owned());
    }
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.bytes().all(inner) {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// A port's number.
pub fn port_number_faults(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// An IP address.
pub fn ip_faults(text: &str) -> Vec<String> {
    if text.parse::<core::net::IpAddr>().is_ok() {
        Vec::new()
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "a".repeat(64);
        type Check = fn(&str) -> Vec<String>;
        let cases: &[(&str, Check, &[&str], &[&str])] = &[
            ("label", label_faults, &["a", "a-b", "1a"], &["", "A", "-a", "a-", "a.b", "a_b", &long]),
            ("1035", label_1035_faults, &["a", "a1"], &["1a", "", "a."]),
            (
                "subdomain",
                subdomain_faults,
                &["a", "a.b", "1.2", "10.128.3.0-24"],
                &["", ".a", "a..b", "a-.b", "A.b"],
            ),
            ("wildcard", wildcard_faults, &["*.a", "*.a.b"], &["*", "a", "*a", "*.", "*.*.a"]),
            (
                "qualified",
                qualified_name_faults,
                &["a", "A_b.c", "example.com/a", "a/b"],
                &["", "/a", "a/", "a/b/c", "-a", "a b", "Ex/a", &long],
            ),
            ("value", label_value_faults, &["", "a", "A.b_c-d", "1"], &["-", "a-", "a b", &long]),
            ("config key", config_key_faults, &["a", "a.b", "_", ".a"], &["", "a/b", ".", "..", "..a"]),
            ("env", env_name_faults, &["A", "a.b", "1", "a b"], &["a=b", "ä", "a\n"]),
            ("port", port_name_faults, &["http", "p-1"], &["1", "A", "a--b", "-a", "abcdefghijklmnop"]),
            ("ip", ip_faults, &["1.2.3.4", "::1"], &["1.2.3", "a", ""]),
        ];
        for (name, check, fine, wrong) in cases {
            for text in *fine {
                assert_eq!(check(text), Vec::<String>::new(), "{name} {text}");
            }
            for text in *wrong {
                assert!(!check(text).is_empty(), "{name} {text}");
            }
        }
        assert_eq!(port_number_faults(0).len() + port_number_faults(65536).len(), 2);
        assert!(port_number_faults(65535).is_empty());
    }
}
