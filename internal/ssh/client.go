package ssh

import (
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/banger-dev/banger/internal/errs"
)

// Alias is the name under which ssh knows the host key of the VM with the id.
// It does not depend on the VM's name or address, so neither a rename nor an
// address used again by another VM confuses ssh.
func Alias(id string) (string, error) {
	if id == "" || len(id) > 64 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", errs.New(errs.Internal, "ssh_bad_id", "%q is no VM id", id)
	}
	return "banger-" + id, nil
}

// KnownHosts is the content of a VM's own known_hosts file: its one host key.
func KnownHosts(id, public string) ([]byte, error) {
	alias, err := Alias(id)
	if err != nil {
		return nil, err
	}
	k, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(public))
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return nil, errs.New(errs.Internal, "ssh_host_key", "the host key of %s is not one public key", id).Because(err)
	}
	return []byte(alias + " " + line(k) + "\n"), nil
}

// Target is a VM as ssh sees it.
type Target struct {
	ID         string // of the VM
	User       string // in the guest
	KeyPath    string // the user's private key
	KnownHosts string // the VM's own known_hosts file
	// Banger is the path of the banger program, for ssh-proxy; "" leaves
	// ProxyCommand to whoever runs the client.
	Banger string
}

// Options gives the client's settings as "Key=value" words for -o, complete:
// nothing is left to the user's or the system's configuration. Whatever could
// be read as something else than itself is refused (ssh_bad_value).
func (t Target) Options() ([]string, error) {
	alias, err := Alias(t.ID)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{"ssh_key_path": t.KeyPath, "known_hosts": t.KnownHosts}
	if t.Banger != "" {
		paths["banger's program"] = t.Banger
	}
	for what, p := range paths {
		if err := checkPath(what, p); err != nil {
			return nil, err
		}
	}
	if t.User == "" || len(t.User) > 32 || t.User[0] == '-' || strings.Trim(t.User, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return nil, errs.New(errs.Invalid, "ssh_bad_value", "%q is no user name", t.User)
	}
	var opts []string
	if t.Banger != "" {
		// The VM is reached through the daemon, and nothing else is tried.
		opts = append(opts, "ProxyCommand="+percent(shellQuote(t.Banger)+" ssh-proxy "+shellQuote(t.ID)))
	}
	return append(opts,
		"User="+t.User,
		"ProxyUseFdpass=no",
		"CanonicalizeHostname=no",
		// Its host key was made on this host: it is known or it is wrong.
		"HostKeyAlias="+alias,
		"UserKnownHostsFile="+quote(t.KnownHosts),
		"GlobalKnownHostsFile=/dev/null",
		"StrictHostKeyChecking=yes",
		"HostKeyAlgorithms=ssh-ed25519",
		"CheckHostIP=no",
		"VerifyHostKeyDNS=no",
		"UpdateHostKeys=no",
		// One key, and nothing that the guest could ask for.
		"IdentityFile="+quote(t.KeyPath),
		"IdentitiesOnly=yes",
		"PreferredAuthentications=publickey",
		"PasswordAuthentication=no",
		"KbdInteractiveAuthentication=no",
		"GSSAPIAuthentication=no",
		"AddKeysToAgent=no",
		"ForwardAgent=no",
		"ForwardX11=no",
		"PermitLocalCommand=no",
		"ControlMaster=no",
		"ControlPath=none",
	), nil
}

// Args gives ssh's arguments up to where the host's name follows: no
// configuration file is read, Options say everything.
func (t Target) Args() ([]string, error) {
	opts, err := t.Options()
	if err != nil {
		return nil, err
	}
	args := []string{"-F", "none"}
	for _, o := range opts {
		args = append(args, "-o", o)
	}
	return args, nil
}

// QuoteCommand makes the one string that ssh hands to the guest's shell from a
// command's words, so that they arrive as typed. A single word is handed on as
// it is: there ssh's users write shell.
func QuoteCommand(argv []string) string {
	if len(argv) == 1 {
		return argv[0]
	}
	q := make([]string, len(argv))
	for i, a := range argv {
		q[i] = shellQuote(a)
	}
	return strings.Join(q, " ")
}

// checkPath refuses paths that ssh's configuration would take apart: control
// characters, quotes, backslashes and variables have a meaning there that
// differs between its versions.
func checkPath(what, p string) error {
	bad := !filepath.IsAbs(p) || strings.ContainsAny(p, "\"'\\$") || strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f })
	if !bad {
		return nil
	}
	return errs.New(errs.Invalid, "ssh_bad_value", "%s is %q, which ssh's options cannot carry", what, p).
		WithHint("use an absolute path without quotes, backslashes, $ and control characters")
}

// quote protects spaces; percent signs are ssh's tokens.
func quote(p string) string { return `"` + percent(p) + `"` }

func percent(s string) string { return strings.ReplaceAll(s, "%", "%%") }

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
