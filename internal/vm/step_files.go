package vm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/paths"
)

// Files of a VM's directory that only this package writes; 0600.
const (
	tokenFile   = "token"
	hostKeyFile = "ssh_host_key"
	hostPubFile = "ssh_host_key.pub"
	initrdFile  = "initrd"
	knownHosts  = "known_hosts"
)

func upDirs(ctx context.Context, w *work) error {
	if err := makeDir(w.dir()); err != nil {
		return storeErr(err)
	}
	if err := chown(w.dir(), w.cred()); err != nil {
		return err
	}
	return w.save(ctx, func(*Record) {}) // now the sidecar has a place
}

// upSockets makes the directory of the sockets, which a reboot may have wiped.
func upSockets(_ context.Context, w *work) error {
	if err := makeDir(w.run()); err != nil {
		return storeErr(err)
	}
	return chown(w.run(), w.cred())
}

func downSockets(_ context.Context, w *work) error { return removeDir(w.run()) }

// makeDir makes one private directory of a VM. One that is there already must
// be ours and nobody else's: no link, mode 0700, our own.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil || !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() || fi.Mode().Perm() != 0o700 {
		return errs.New(errs.Denied, "dir_hostile", "%s is not a private directory of banger's", dir).WithHint("look at it, then: rm -r %s", dir)
	}
	return nil
}

// ours are the files that banger and its drivers make in a VM's directories;
// nothing else is ever deleted there.
func ours(name string) bool {
	switch name {
	case paths.SystemDisk, paths.WorkDisk, paths.Sidecar, paths.RAMFile, paths.Devices,
		tokenFile, hostKeyFile, hostPubFile, initrdFile, knownHosts, "ssh_config",
		paths.ControlSock, paths.AgentSock, paths.ConsoleSock, paths.ShimSock:
		return true
	}
	for _, log := range []string{paths.ConsoleLog, paths.VMMLog, paths.ShimLog} {
		if name == log || strings.HasPrefix(name, log+".") {
			return true
		}
	}
	// unfinished writes of fsx, and what a driver names by its own rule
	return strings.Contains(name, ".tmp") || strings.HasPrefix(name, "."+paths.Sidecar) || strings.HasPrefix(name, "vmm-") || strings.HasSuffix(name, ".sock")
}

func downDirs(_ context.Context, w *work) error {
	return removeDir(w.dir())
}

// removeDir removes our files and then the directory. What we did not make is
// left where it is, and named.
func removeDir(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var foreign []string
	for _, f := range list {
		if f.IsDir() || !ours(f.Name()) {
			foreign = append(foreign, f.Name())
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(foreign) > 0 {
		return fmt.Errorf("left in place, not made by banger: %s in %s", strings.Join(foreign, ", "), dir)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// chown gives a file to the VM's hypervisor, where that is another user.
func chown(path string, cred *hypervisor.Credential) error {
	if cred == nil {
		return nil
	}
	return os.Lchown(path, int(cred.UID), int(cred.GID))
}

func upDisks(ctx context.Context, w *work) error {
	spec := w.rec().Spec
	for _, d := range []struct{ file, label string }{{paths.SystemDisk, "system"}, {paths.WorkDisk, "work"}} {
		dst := filepath.Join(w.dir(), d.file)
		if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // of an earlier try
		}
		var err error
		if w.template != nil {
			err = w.s.Disks.Clone(ctx, filepath.Join(w.template.dir, d.file), dst)
		} else {
			err = w.s.Disks.Make(ctx, dst, spec.Disk, d.label)
		}
		if err == nil {
			err = chown(dst, w.cred())
		}
		if err != nil {
			return fmt.Errorf("%s disk: %w", d.label, err)
		}
	}
	return nil
}

func downDisks(_ context.Context, w *work) error {
	return removeFiles(w.dir(), paths.SystemDisk, paths.WorkDisk)
}

func removeFiles(dir string, names ...string) error {
	var all []error
	for _, n := range names {
		if err := os.Remove(filepath.Join(dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// upSeed makes the VM's own secrets once, and the initramfs that carries them
// for a cold boot. A clone boots nothing: it gets them with its identity.
func upSeed(ctx context.Context, w *work) error {
	_, token, err := w.secrets()
	if err != nil {
		return storeErr(err)
	}
	if err := w.save(ctx, func(r *Record) {
		if r.MachineID == "" {
			r.MachineID = randomHex(16)
		}
		r.GuestBoot = randomUUID()
	}); err != nil {
		return err
	}
	if w.template != nil {
		return nil
	}
	base, err := w.s.Boot.Initramfs(ctx, w.kernel)
	if err != nil {
		return err
	}
	dst := filepath.Join(w.dir(), initrdFile)
	if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.s.Boot.Seeded(ctx, base, dst, seed(token, w.kernel)); err != nil {
		return storeErr(err)
	}
	return chown(dst, w.cred())
}

func downSeed(_ context.Context, w *work) error { return removeFiles(w.dir(), initrdFile) }

// secrets reads the VM's host key and token, making them when they are not there.
func (w *work) secrets() (HostKey, []byte, error) {
	key, err := readHostKey(w.dir())
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = w.s.SSH.NewHostKey(w.rec().ID); err != nil {
			return key, nil, err
		}
		err = errors.Join(
			fsx.WriteFile(filepath.Join(w.dir(), hostPubFile), []byte(strings.TrimSpace(key.Public)+"\n"), 0o600),
			fsx.WriteFile(filepath.Join(w.dir(), hostKeyFile), key.Private, 0o600))
	}
	if err != nil {
		return key, nil, err
	}
	token, err := readToken(w.dir())
	if errors.Is(err, fs.ErrNotExist) {
		token = make([]byte, 32)
		rand.Read(token)
		err = fsx.WriteFile(filepath.Join(w.dir(), tokenFile), []byte(hex.EncodeToString(token)+"\n"), 0o600)
	}
	return key, token, err
}

func readHostKey(dir string) (HostKey, error) {
	private, err := os.ReadFile(filepath.Join(dir, hostKeyFile))
	if err != nil {
		return HostKey{}, err
	}
	public, err := os.ReadFile(filepath.Join(dir, hostPubFile))
	return HostKey{Private: private, Public: strings.TrimSpace(string(public))}, err
}

func readToken(dir string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if err != nil {
		return nil, err
	}
	t, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(t) != 32 {
		return nil, errs.New(errs.Internal, "token_damaged", "%s is damaged", filepath.Join(dir, tokenFile))
	}
	return t, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func randomUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// diskUsed is what the VM's files take on the host.
func (s *Service) diskUsed(id string) int64 {
	var sum int64
	for _, f := range []string{paths.SystemDisk, paths.WorkDisk} {
		if n, err := fsx.Allocated(filepath.Join(s.opt.Layout.VMDir(id), f)); err == nil {
			sum += n
		}
	}
	return sum
}
