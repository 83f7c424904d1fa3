// Package initramfs makes the first root file system of a guest: banger's
// agent as /init and the modules it needs before it can mount the image. A
// VM's secrets reach the guest by a second archive appended to it, never by
// the kernel command line or a program's arguments.
//
// It needs no root and runs no program. It does not boot anything.
package initramfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/kernel"
)

// Where things lie in the guest, before the root file system is mounted.
const (
	// ModulesList names the modules' paths in load order, one a line.
	ModulesList = "/banger/modules"
	// Seed is the file that WithSeed adds, mode 0600.
	Seed = "/banger/seed.json"

	moduleDir = "/banger/ko"
)

// MaxSeed bounds a VM's seed, in bytes.
const MaxSeed = 1 << 20

// format changes whenever equal inputs no longer give equal archives.
const format = "1"

// Build makes the initramfs of a kernel with the agent's static binary at
// agentPath, or finds the one made before, in dir (which exists), and gives
// its path. The same inputs give the same bytes. The file is never changed
// afterwards. Safe to call concurrently, also from several processes.
//
// It is not compressed: see docs/decisions/0006-plain-initramfs.md.
func Build(ctx context.Context, k kernel.Kernel, agentPath, dir string) (string, error) {
	p, err := build(ctx, k, agentPath, dir)
	switch {
	case err == nil || ctx.Err() != nil:
		return p, err
	case fsx.IsFull(err):
		return "", errs.New(errs.Exhausted, "disk_full", "cannot make the initramfs").Because(err).
			WithHint("free some space, see: banger doctor")
	}
	return "", errs.Wrap(err, errs.Internal, "initramfs_failed", "cannot make the initramfs of kernel %s", k.Manifest.Name)
}

func build(ctx context.Context, k kernel.Kernel, agentPath, dir string) (string, error) {
	agent, err := os.Open(agentPath)
	if err != nil {
		return "", err
	}
	defer agent.Close()
	h := sha256.New()
	size, err := io.Copy(h, agent)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s %s %x", format, k.Manifest.Digest, h.Sum(nil)))
	to := filepath.Join(dir, "initramfs-"+hex.EncodeToString(key[:16])+".cpio")
	if st, err := os.Stat(to); err == nil && st.Mode().IsRegular() {
		return to, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if _, err := agent.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	order, err := readOrder(k.BootModules)
	if err != nil {
		return "", err
	}
	t, err := fsx.CreateTemp(to, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = t.Discard() }()
	if err := write(t, agent, size, k.BootModules, order); err != nil {
		return "", err
	}
	return to, t.Commit()
}

// readOrder gives the modules' file names in load order.
func readOrder(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, kernel.OrderFile))
	if err != nil {
		return nil, err
	}
	names := strings.Fields(string(b))
	for _, n := range names {
		if filepath.Base(n) != n || !strings.HasSuffix(n, ".ko") {
			return nil, fmt.Errorf("%s names %q", kernel.OrderFile, n)
		}
	}
	return names, nil
}

func write(w io.Writer, agent io.Reader, size int64, modules string, order []string) error {
	c := &cpioWriter{w: w}
	c.dir("dev", 0o755)
	c.entry("dev/console", modeChar|0o600, 5, 1, 0, nil)
	c.dir("banger", 0o700)
	c.dir(moduleDir[1:], 0o700)
	var list strings.Builder
	for _, n := range order {
		b, err := os.ReadFile(filepath.Join(modules, n))
		if err != nil {
			return err
		}
		c.entry(moduleDir[1:]+"/"+n, modeFile|0o600, 0, 0, int64(len(b)), bytes.NewReader(b))
		list.WriteString(moduleDir + "/" + n + "\n")
	}
	c.entry(ModulesList[1:], modeFile|0o600, 0, 0, int64(list.Len()), strings.NewReader(list.String()))
	c.entry("init", modeFile|0o755, 0, 0, size, agent)
	return c.end()
}

// WithSeed makes dst, which must not exist, the archive at base followed by
// one that holds seed as Seed. Both are 0600. Where the file system can share
// blocks the copy costs nothing. On failure dst is removed.
func WithSeed(ctx context.Context, base, dst string, seed []byte) (err error) {
	if len(seed) > MaxSeed {
		return errs.New(errs.Internal, "seed_too_large", "the VM's seed has %d bytes, more than %d", len(seed), MaxSeed)
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the VM's initramfs: %w", err)
	}
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
		if err != nil {
			_ = os.Remove(dst)
			err = fmt.Errorf("make the VM's initramfs: %w", err)
		}
	}()
	// The umask may have taken more than was asked for.
	if err := out.Chmod(0o600); err != nil {
		return err
	}
	if err := fsx.CopyInto(ctx, out, base); err != nil {
		return err
	}
	n, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	// The kernel looks for an archive at a multiple of four.
	b.Write(make([]byte, (4-n%4)%4))
	c := &cpioWriter{w: &b}
	c.entry(Seed[1:], modeFile|0o600, 0, 0, int64(len(seed)), bytes.NewReader(seed))
	if err := c.end(); err != nil {
		return err
	}
	_, err = out.Write(b.Bytes())
	return err
}
