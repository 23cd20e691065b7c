//! Passwords and passphrases: asked once, by one thread at a time, never shown.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Asks the user for a secret.
pub trait Prompt: Send + Sync {
    /// Shows `text` and reads a line without echo. None: there is no terminal, or the user declined.
    fn secret(&self, text: &str) -> Option<String>;
}

/// Never answers: for runs without a terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPrompt;

impl Prompt for NoPrompt {
    fn secret(&self, _text: &str) -> Option<String> {
        None
    }
}

/// A secret that no log can show.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a secret is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// The private key in this file.
    Key(String),
    /// `user@host`.
    Login(String),
    /// sudo, on all nodes.
    Sudo,
}

struct Known {
    value: Option<Secret>,
    /// How many answers there were; names an answer so that only the first thread that finds it wrong asks again.
    generation: u32,
    /// Not from the prompt: asking again cannot help.
    fixed: bool,
}

/// Answers so far, for all sessions of a transport.
pub(crate) struct Secrets {
    prompt: Box<dyn Prompt>,
    known: Mutex<HashMap<Purpose, Known>>,
}

/// As `ssh` has it: NumberOfPasswordPrompts.
const ATTEMPTS: u32 = 3;

impl Secrets {
    pub(crate) fn new(prompt: Box<dyn Prompt>, sudo: Option<String>) -> Self {
        let mut known = HashMap::new();
        if let Some(password) = sudo {
            known.insert(Purpose::Sudo, Known { value: Some(Secret(password)), generation: 1, fixed: true });
        }
        Secrets { prompt, known: Mutex::new(known) }
    }

    /// An answer that was given before.
    pub(crate) fn cached(&self, purpose: &Purpose) -> Option<(Secret, u32)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(purpose).and_then(|k| Some((k.value.clone()?, k.generation)))
    }

    /// The secret and its generation; asks if there is none yet or if generation `wrong` is the latest one.
    pub(crate) fn get(&self, purpose: &Purpose, text: &str, wrong: Option<u32>) -> Option<(Secret, u32)> {
        // Held while the user types: one prompt at a time.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = match known.get(purpose) {
            Some(k) if wrong != Some(k.generation) => return Some((k.value.clone()?, k.generation)),
            Some(k) if k.fixed || k.value.is_none() || k.generation >= ATTEMPTS => return None,
            Some(k) => k.generation + 1,
            None => 1,
        };
        let value = self.prompt.secret(text).map(Secret);
        known.insert(purpose.clone(), Known { value: value.clone(), generation, fixed: false });
        Some((value?, generation))
    }

    /// A question of the server's own; its answer is not kept.
    pub(crate) fn ask(&self, text: &str) -> Option<String> {
        let _one_at_a_time = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.prompt.secret(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Counting(std::sync::Arc<AtomicU32>);

    impl Prompt for Counting {
        fn secret(&self, _text: &str) -> Option<String> {
            Some(format!("answer {}", self.0.fetch_add(1, Ordering::SeqCst) + 1))
        }
    }

    #[test]
    fn asks_once_and_again_only_for_the_latest_wrong_answer() {
        let asked = std::sync::Arc::new(AtomicU32::new(0));
        let secrets = Secrets::new(Box::new(Counting(asked.clone())), None);
        let (first, generation) = secrets.get(&Purpose::Sudo, "?", None).unwrap();
        assert_eq!((first.expose(), generation), ("answer 1", 1));
        assert_eq!(secrets.get(&Purpose::Sudo, "?", None).unwrap().0.expose(), "answer 1");
        assert_eq!(secrets.get(&Purpose::Sudo, "?", Some(1)).unwrap().0.expose(), "answer 2");
        // A second node that was refused the first answer gets the second without a question.
        assert_eq!(secrets.get(&Purpose::Sudo, "?", Some(1)).unwrap().0.expose(), "answer 2");
        assert_eq!(secrets.get(&Purpose::Sudo, "?", Some(2)).unwrap().0.expose(), "answer 3");
        assert!(secrets.get(&Purpose::Sudo, "?", Some(3)).is_none());
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_given_password_is_never_asked_for() {
        let asked = std::sync::Arc::new(AtomicU32::new(0));
        let secrets = Secrets::new(Box::new(Counting(asked.clone())), Some("given".into()));
        assert_eq!(secrets.get(&Purpose::Sudo, "?", None).unwrap().0.expose(), "given");
        assert!(secrets.get(&Purpose::Sudo, "?", Some(1)).is_none());
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        assert_eq!(format!("{:?}", secrets.cached(&Purpose::Sudo)), "Some((***, 1))");
    }
}
