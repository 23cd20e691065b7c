//! Who we are: agent, key files, then password or the server's own questions.

use std::io;
use std::path::Path;
use std::time::Duration;

use homelab_driver::TransportError;
use libssh2_sys as raw;
use ssh2::{Agent, ErrorCode, KeyboardInteractivePrompt, PublicKey};

use crate::config::{AgentSocket, Settings};
use crate::keyfile::KeyFile;
use crate::link::{Limit, Link, Stopped, words};
use crate::secrets::{Purpose, Secrets};

const STAGE: &str = "authenticating";
/// What a user gets for the server's own questions; sshd's LoginGraceTime is as long.
const TYPING: Duration = Duration::from_secs(120);

/// How one attempt ended.
enum Tried {
    In,
    Refused,
    /// The server wants this key, but it could not be used to sign.
    CannotSign,
}

/// Logs in, or says what was tried.
pub(crate) fn authenticate(
    link: &mut Link,
    settings: &Settings,
    secrets: &Secrets,
    limit: &mut Limit,
) -> Result<(), TransportError> {
    let mut attempt = Attempt { link, settings, secrets, limit, tried: Vec::new() };
    if settings.pubkey && attempt.keys()? {
        return Ok(());
    }
    if attempt.secrets()? {
        return Ok(());
    }
    let tried = if attempt.tried.is_empty() { "no key found".to_owned() } else { attempt.tried.join(", ") };
    Err(TransportError::Auth { user: settings.user.clone(), host: settings.endpoint(), tried })
}

struct Attempt<'a> {
    link: &'a mut Link,
    settings: &'a Settings,
    secrets: &'a Secrets,
    limit: &'a mut Limit,
    tried: Vec<String>,
}

impl Attempt<'_> {
    /// As OpenSSH orders them: the agent's keys that a file names, homelab.yaml's own key, the agent's other keys,
    /// the other files.
    fn keys(&mut self) -> Result<bool, TransportError> {
        let files = self.files()?;
        let (mut agent, held) = self.agent();
        let named =
            |key: &PublicKey| files.iter().any(|f| f.public.as_ref().is_some_and(|p| p.blob == key.blob()));
        let in_agent = |file: &KeyFile| {
            file.public.as_ref().is_some_and(|p| held.iter().any(|key| p.blob == key.blob()))
        };
        let (first, rest): (Vec<&PublicKey>, Vec<&PublicKey>) = held.iter().partition(|key| named(key));
        let explicit = |file: &&KeyFile| self.settings.identity.as_ref() == Some(&file.path);
        let (own, others): (Vec<&KeyFile>, Vec<&KeyFile>) =
            files.iter().filter(|f| !in_agent(f) && f.private.is_some()).partition(explicit);
        if let Some(agent) = &mut agent {
            for key in first {
                if self.agent_key(agent, key)? {
                    return Ok(true);
                }
            }
        }
        for file in own {
            if self.file(file)? {
                return Ok(true);
            }
        }
        if let Some(agent) = agent.as_mut().filter(|_| !self.settings.identities_only) {
            for key in rest {
                if self.agent_key(agent, key)? {
                    return Ok(true);
                }
            }
        }
        for file in others {
            if self.file(file)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn files(&mut self) -> Result<Vec<KeyFile>, TransportError> {
        let mut files = Vec::new();
        if let Some(path) = &self.settings.identity {
            files.push(
                KeyFile::read(path).map_err(|e| TransportError::Key {
                    path: path.display().to_string(),
                    reason: words(&e),
                })?,
            );
        }
        for path in &self.settings.identity_files {
            match KeyFile::read(path) {
                Ok(file) => files.push(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => self.tried.push(format!("{} ({})", short(path), words(&e))),
            }
        }
        Ok(files)
    }

    /// The agent and its keys; nothing if there is none.
    fn agent(&mut self) -> (Option<Agent>, Vec<PublicKey>) {
        let path = match &self.settings.agent {
            AgentSocket::None => return (None, Vec::new()),
            AgentSocket::Environment if std::env::var_os("SSH_AUTH_SOCK").is_none_or(|v| v.is_empty()) => {
                return (None, Vec::new());
            }
            AgentSocket::Environment => None,
            AgentSocket::Path(path) => Some(path),
        };
        let open = || {
            let mut agent = self.link.session.agent()?;
            if let Some(path) = path {
                agent.set_identity_path(path)?;
            }
            agent.connect()?;
            agent.list_identities()?;
            let keys = agent.identities()?;
            Ok::<_, ssh2::Error>((Some(agent), keys))
        };
        match open() {
            Ok((agent, keys)) => {
                if keys.is_empty() {
                    self.tried.push("an agent without keys".to_owned());
                }
                (agent, keys)
            }
            Err(e) => {
                self.tried.push(format!("the agent ({})", e.message()));
                (None, Vec::new())
            }
        }
    }

    fn agent_key(&mut self, agent: &mut Agent, key: &PublicKey) -> Result<bool, TransportError> {
        let user = &self.settings.user;
        let result = self.link.drive(self.limit, |_| agent.userauth(user, key));
        let result = self.outcome(result)?;
        self.note(format!("agent: {}", key.comment()), &result, "the agent did not sign");
        Ok(matches!(result, Tried::In))
    }

    fn file(&mut self, file: &KeyFile) -> Result<bool, TransportError> {
        let Some(private) = &file.private else { return Ok(false) };
        if file.public.as_ref().is_some_and(|p| p.algorithm().starts_with("sk-")) {
            self.tried.push(format!("{} (a security key: add it to an agent)", short(&file.path)));
            return Ok(false);
        }
        if file.encrypted {
            return self.encrypted(file, private);
        }
        let result = self.sign_in(file, private, None)?;
        self.note(short(&file.path), &result, "it cannot be read, or its kind is not supported");
        Ok(matches!(result, Tried::In))
    }

    /// Asks for the passphrase only if the server would take the key, where the file tells its public half.
    fn encrypted(&mut self, file: &KeyFile, private: &str) -> Result<bool, TransportError> {
        let path = file.path.display().to_string();
        let purpose = Purpose::Key(path.clone());
        // Waits while another session's user is typing.
        let mut secret = self.limit.pause(|| self.secrets.cached(&purpose));
        if secret.is_none() && file.public.is_some() {
            let result = self.sign_in(file, private, None)?;
            if !matches!(result, Tried::CannotSign) {
                self.note(short(&file.path), &result, "");
                return Ok(matches!(result, Tried::In));
            }
        }
        let text = format!("Passphrase for the key {path}: ");
        let mut wrong = None;
        loop {
            if secret.is_none() {
                let asked = self.limit.pause(|| {
                    if self.settings.batch { None } else { self.secrets.get(&purpose, &text, wrong) }
                });
                let Some(answer) = asked else {
                    let why =
                        if wrong.is_some() { "wrong passphrase" } else { "encrypted, and nobody to ask" };
                    self.tried.push(format!("{} ({why})", short(&file.path)));
                    return Ok(false);
                };
                secret = Some(answer);
            }
            let Some((phrase, generation)) = secret.take() else { continue };
            let result = self.sign_in(file, private, Some(phrase.expose()))?;
            if !matches!(result, Tried::CannotSign) {
                self.note(short(&file.path), &result, "");
                return Ok(matches!(result, Tried::In));
            }
            wrong = Some(generation);
        }
    }

    fn sign_in(
        &mut self,
        file: &KeyFile,
        private: &str,
        passphrase: Option<&str>,
    ) -> Result<Tried, TransportError> {
        let user = &self.settings.user;
        let public = file.public.as_ref().map(|p| p.line());
        let result = self.link.drive(self.limit, |session| {
            session.userauth_pubkey_memory(user, public.as_deref(), private, passphrase)
        });
        self.outcome(result)
    }

    /// Password or questions, if the server offers them and somebody can answer.
    fn secrets(&mut self) -> Result<bool, TransportError> {
        let user = &self.settings.user;
        // This is the "none" probe: it may even let us in.
        let methods = match self.link.drive(self.limit, |s| s.auth_methods(user).map(str::to_owned)) {
            Ok(methods) => methods,
            Err(Stopped::Ssh(_)) if self.link.session.authenticated() => return Ok(true),
            Err(Stopped::Ssh(_)) if !self.tried.is_empty() => {
                self.tried.push("then the server closed the connection".to_owned());
                return Ok(false);
            }
            Err(stopped) => return Err(self.link.error(stopped, self.limit, STAGE)),
        };
        if self.link.session.authenticated() {
            return Ok(true);
        }
        let offers = |method: &str| methods.split(',').any(|m| m == method);
        if !self.settings.batch && self.settings.password && offers("password") && self.password()? {
            return Ok(true);
        }
        if !self.settings.batch
            && self.settings.keyboard
            && offers("keyboard-interactive")
            && self.keyboard()?
        {
            return Ok(true);
        }
        if !offers("publickey") {
            self.tried.push(format!("the server takes only {methods}"));
        }
        Ok(false)
    }

    fn password(&mut self) -> Result<bool, TransportError> {
        let user = &self.settings.user;
        let login = format!("{user}@{}", self.settings.endpoint());
        let text = format!("Password for {login}: ");
        let purpose = Purpose::Login(login);
        let mut wrong = None;
        while let Some((password, generation)) = self.limit.pause(|| self.secrets.get(&purpose, &text, wrong))
        {
            let result =
                self.link.drive(self.limit, |session| session.userauth_password(user, password.expose()));
            if matches!(self.outcome(result)?, Tried::In) {
                return Ok(true);
            }
            wrong = Some(generation);
        }
        if wrong.is_some() {
            self.tried.push("password".to_owned());
        }
        Ok(false)
    }

    fn keyboard(&mut self) -> Result<bool, TransportError> {
        let user = &self.settings.user;
        let login = format!("{user}@{}", self.settings.endpoint());
        let purpose = Purpose::Login(login.clone());
        let mut answers =
            Answers { secrets: self.secrets, login, purpose, wrong: None, generation: None, declined: false };
        for _ in 0..3 {
            // The questions come in the middle of the operation: the user's time cannot be told from the server's.
            let patient = Limit::new(self.limit.length + TYPING);
            let link = &mut *self.link;
            let result = self.limit.pause(|| {
                link.drive(&patient, |session| session.userauth_keyboard_interactive(user, &mut answers))
            });
            if matches!(self.outcome(result)?, Tried::In) {
                return Ok(true);
            }
            if answers.declined || answers.generation.is_none() {
                break;
            }
            answers.wrong = answers.generation;
        }
        if answers.generation.is_some() {
            self.tried.push("keyboard-interactive".to_owned());
        }
        Ok(false)
    }

    /// A refusal is an outcome, a broken connection an error.
    fn outcome(&self, result: Result<(), Stopped>) -> Result<Tried, TransportError> {
        let error = match result {
            Ok(()) => return Ok(Tried::In),
            Err(Stopped::Ssh(error)) => error,
            Err(stopped) => return Err(self.link.error(stopped, self.limit, STAGE)),
        };
        tracing::debug!(endpoint = %self.link.endpoint, %error, "not let in");
        match error.code() {
            // libssh2 has one code for both; its words tell them apart.
            ErrorCode::Session(raw::LIBSSH2_ERROR_PUBLICKEY_UNVERIFIED)
                if error.message().contains("Callback returned error") =>
            {
                Ok(Tried::CannotSign)
            }
            ErrorCode::Session(
                raw::LIBSSH2_ERROR_FILE
                | raw::LIBSSH2_ERROR_KEYFILE_AUTH_FAILED
                | raw::LIBSSH2_ERROR_METHOD_NONE
                | raw::LIBSSH2_ERROR_METHOD_NOT_SUPPORTED
                | raw::LIBSSH2_ERROR_PROTO,
            ) => Ok(Tried::CannotSign),
            _ => Ok(Tried::Refused),
        }
    }

    fn note(&mut self, what: String, result: &Tried, cannot_sign: &str) {
        match result {
            Tried::In => {}
            Tried::CannotSign if !cannot_sign.is_empty() => {
                self.tried.push(format!("{what} ({cannot_sign})"))
            }
            Tried::Refused | Tried::CannotSign => self.tried.push(what),
        }
    }
}

/// Answers the server's questions by the user's words.
struct Answers<'a> {
    secrets: &'a Secrets,
    login: String,
    purpose: Purpose,
    wrong: Option<u32>,
    generation: Option<u32>,
    declined: bool,
}

impl KeyboardInteractivePrompt for Answers<'_> {
    fn prompt<'b>(&mut self, _user: &str, instructions: &str, prompts: &[ssh2::Prompt<'b>]) -> Vec<String> {
        let mut answers = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let text = format!(
                "{}{} for {}: ",
                lead(instructions),
                prompt.text.trim_end_matches([' ', ':']),
                self.login
            );
            // A single hidden question is the password, which a second connection needs again.
            let answer = if prompts.len() == 1 && !prompt.echo {
                self.secrets.get(&self.purpose, &text, self.wrong).map(|(secret, generation)| {
                    self.generation = Some(generation);
                    secret.expose().to_owned()
                })
            } else {
                self.generation = self.generation.or(Some(0));
                self.secrets.ask(&text)
            };
            self.declined |= answer.is_none();
            answers.push(answer.unwrap_or_default());
        }
        answers
    }
}

fn lead(instructions: &str) -> String {
    if instructions.is_empty() { String::new() } else { format!("{}\n", instructions.trim_end()) }
}

/// A path as people write it.
fn short(path: &Path) -> String {
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
    match home.as_ref().and_then(|home| path.strip_prefix(home).ok()) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
