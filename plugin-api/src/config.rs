//! From the JSON an operator's settings arrive in to the plugin's own type.

use crate::Error;
use serde::de::DeserializeOwned;

/// Reads a plugin's settings; an error names the key it is about.
pub fn parse<C: DeserializeOwned>(json: &str) -> Result<C, Error> {
    let mut reader = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let key = error.path().to_string();
        let problem = without_position(&error.into_inner().to_string());
        // A missing or unknown key is named by the message itself; its path is that of the table around it.
        if key == "." || problem.contains('`') && problem.contains("field") {
            Error::config(problem)
        } else {
            Error::config(format!("`{key}`: {problem}"))
        }
    })
}

/// Settings are written in the host's TOML, so a position in the JSON made from it would only mislead.
fn without_position(message: &str) -> String {
    message.rfind(" at line ").map_or(message, |end| &message[..end]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::ErrorCode;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[expect(dead_code, reason = "only parsed")]
        every: String,
        #[serde(default)]
        #[expect(dead_code, reason = "only parsed")]
        window: Option<Window>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Window {
        #[expect(dead_code, reason = "only parsed")]
        from: u32,
    }

    fn refusal(json: &str) -> String {
        let error = parse::<Config>(json).expect_err("settings that are wrong");
        assert_eq!(error.code, ErrorCode::Config);
        error.message
    }

    #[test]
    fn a_refusal_names_the_key() {
        assert_eq!(refusal("{}"), "missing field `every`");
        assert_eq!(refusal(r#"{"every": "1h", "evry": 1}"#), "unknown field `evry`, expected `every` or `window`");
        assert_eq!(refusal(r#"{"every": 15}"#), "`every`: invalid type: integer `15`, expected a string");
        assert_eq!(
            refusal(r#"{"every": "1h", "window": {"from": "x"}}"#),
            "`window.from`: invalid type: string \"x\", expected u32"
        );
    }

    #[test]
    fn right_settings_are_read() {
        parse::<Config>(r#"{"every": "1h", "window": {"from": 3}}"#).expect("right settings");
    }
}
