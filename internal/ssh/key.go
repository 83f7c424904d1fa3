// Package ssh makes the keys and writes the words by which OpenSSH enters a
// VM: the user's key, each VM's own host key and known_hosts, and the client's
// options. It contains no network code and runs no program; the client is the
// user's own ssh, and a VM is reached through `banger ssh-proxy`.
//
// It never changes or removes a key that is there: it makes one where there is
// none, and says what is wrong with one that cannot be used.
package ssh

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/banger-dev/banger/internal/errs"
)

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 64 << 10

// UserKey is the key with which the user enters VMs.
type UserKey struct {
	Path string
	// Public is its line for authorized_keys, without newline or comment.
	Public string
}

// EnsureUserKey reads the key at path. Where there is none and create is set
// (path is banger's own default) it makes an ed25519 key, mode 0600, in a
// directory that it makes with mode 0700; two callers at once get the same
// key. Errors: ssh_key_missing, ssh_key_exposed, ssh_key_unusable.
func EnsureUserKey(path string, create bool) (UserKey, error) {
	if err := checkPath("ssh_key_path", path); err != nil {
		return UserKey{}, err
	}
	k, err := readUserKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if !create {
		return UserKey{}, errs.New(errs.Invalid, "ssh_key_missing", "there is no ssh key at %s", path).
			WithHint("make one: ssh-keygen -t ed25519 -f '%s'", path)
	}
	if err := makeUserKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return UserKey{}, errs.Wrap(err, errs.Internal, "ssh_key_unwritable", "cannot make the ssh key %s", path)
	}
	return readUserKey(path)
}

// readUserKey checks and reads a key; fs.ErrNotExist when there is none.
func readUserKey(path string) (UserKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return UserKey{}, err
	}
	if err != nil {
		return UserKey{}, unusable(path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return UserKey{}, unusable(path, err)
	}
	if !st.Mode().IsRegular() {
		return UserKey{}, unusable(path, errors.New("not a regular file"))
	}
	if st.Mode().Perm()&0o077 != 0 {
		return UserKey{}, errs.New(errs.Denied, "ssh_key_exposed", "the ssh key %s is open to others (mode %04o)", path, st.Mode().Perm()).
			WithHint("chmod 600 '%s'", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil || len(b) > maxKeyFile {
		return UserKey{}, unusable(path, errors.Join(err, fmt.Errorf("read %d bytes", len(b))))
	}
	pub, err := publicOf(b, path+".pub")
	if err != nil {
		return UserKey{}, unusable(path, err)
	}
	return UserKey{Path: path, Public: pub}, nil
}

func unusable(path string, err error) error {
	return errs.New(errs.Invalid, "ssh_key_unusable", "cannot use the ssh key %s", path).Because(err).
		WithHint("check it: ssh-keygen -l -f '%s'", path)
}

// publicOf finds the public half: in the private key, also where that is
// encrypted, or else (keys on hardware) in the file beside it.
func publicOf(private []byte, pubFile string) (string, error) {
	signer, err := ssh.ParsePrivateKey(private)
	if err == nil {
		return line(signer.PublicKey()), nil
	}
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) && locked.PublicKey != nil {
		return line(locked.PublicKey), nil
	}
	if block, _ := pem.Decode(private); block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY") {
		return "", errors.New("no private key in it")
	}
	b, rerr := os.ReadFile(pubFile)
	if rerr != nil {
		return "", fmt.Errorf("%w, and its public half is not beside it: %w", err, rerr)
	}
	pub, _, _, _, perr := ssh.ParseAuthorizedKey(b)
	if perr != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(pubFile), perr)
	}
	return line(pub), nil
}

func line(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }

// makeUserKey writes a new key; fs.ErrExist when another was quicker.
func makeUserKey(path string) error {
	private, public, err := newKey("banger")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// A link, unlike a rename, never takes the place of another file.
	if err := placeNew(dir, path, private); err != nil {
		return err
	}
	if err := placeNew(dir, path+".pub", []byte(public+"\n")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func placeNew(dir, path string, data []byte) error {
	f, err := os.CreateTemp(dir, ".banger-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	return err
}

// HostKey is a VM's own ed25519 host key.
type HostKey struct {
	Private []byte // OpenSSH's PEM form
	Public  string // "ssh-ed25519 AAAA… banger-ID", without newline
}

// NewHostKey makes the host key of the VM with the id.
func NewHostKey(id string) (HostKey, error) {
	alias, err := Alias(id)
	if err != nil {
		return HostKey{}, err
	}
	private, public, err := newKey(alias)
	if err != nil {
		return HostKey{}, errs.Wrap(err, errs.Internal, "ssh_host_key", "cannot make the host key of %s", id)
	}
	return HostKey{Private: private, Public: public}, nil
}

func newKey(comment string) (private []byte, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return nil, "", err
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, "", err
	}
	return pem.EncodeToMemory(block), line(k) + " " + comment, nil
}
