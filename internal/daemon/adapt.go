package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/disk"
	"github.com/banger-dev/banger/internal/fsx"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/kernel/initramfs"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/ssh"
	"github.com/banger-dev/banger/internal/vm"
)

// disks are the functions of package disk as the room of VMs calls them.
type disks struct{ *disk.Maker }

var _ vm.Disks = disks{}

// Clone copies a disk.
func (disks) Clone(ctx context.Context, src, dst string) error { return disk.Clone(ctx, src, dst) }

// Grow grows a disk's file.
func (disks) Grow(path string, size int64) error { return disk.Grow(path, size) }

// bootFiles makes initramfs files.
type bootFiles struct {
	dir   string
	agent func() (string, error)

	mu    sync.Mutex
	known map[string]vm.Initramfs
}

var _ vm.Boot = (*bootFiles)(nil)

// Initramfs gives the kernel's initramfs; what it is made of is read again
// only when a file has changed.
func (b *bootFiles) Initramfs(ctx context.Context, k kernel.Kernel) (vm.Initramfs, error) {
	agent, err := b.agent()
	if err != nil {
		return vm.Initramfs{}, err
	}
	fi, err := os.Stat(agent)
	if err != nil {
		return vm.Initramfs{}, err
	}
	key := fmt.Sprint(k.Manifest.Digest, k.BootModules, agent, fi.ModTime().UnixNano(), fi.Size())
	b.mu.Lock()
	i, ok := b.known[key]
	b.mu.Unlock()
	if ok {
		if _, err := os.Stat(i.Path); err == nil {
			return i, nil
		}
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return vm.Initramfs{}, err
	}
	path, err := initramfs.Build(ctx, k, agent, b.dir)
	if err != nil {
		return vm.Initramfs{}, err
	}
	// the name is made from the digests of all that is in it
	i = vm.Initramfs{Path: path, Digest: filepath.Base(path)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = map[string]vm.Initramfs{}
	}
	b.known[key] = i
	return i, nil
}

// Seeded writes base with the seed appended.
func (*bootFiles) Seeded(ctx context.Context, base vm.Initramfs, dst string, s vm.Seed) error {
	text, err := json.Marshal(boot.Seed{Token: s.Token, Disks: s.Disks})
	if err != nil {
		return err
	}
	return initramfs.WithSeed(ctx, base.Path, dst, text)
}

// Cmdline is the kernel's command line but for the driver's own part.
func (*bootFiles) Cmdline(extra []string) string {
	return strings.Join(append([]string{"quiet", "loglevel=4", "cryptomgr.notests", "tsc=reliable"}, extra...), " ")
}

// kernelRoom is the store of kernels with its catalog.
type kernelRoom struct {
	*kernel.Store
	recipes map[string]kernel.Recipe
}

// Catalog names the kernels that can be fetched.
func (k kernelRoom) Catalog() []string {
	var out []string
	for name := range k.recipes {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// Pull fetches a kernel; one that is here is fetched again only with force.
func (k kernelRoom) Pull(ctx context.Context, name string, force bool, r op.Reporter) (kernel.Kernel, error) {
	if !force {
		return k.Store.Ensure(ctx, name, r)
	}
	return k.Store.Pull(ctx, name, r)
}

// sshKeys makes and keeps keys.
type sshKeys struct {
	path   string
	create bool // the path is banger's own default
}

var _ vm.SSH = sshKeys{}

// NewHostKey makes a VM's host key.
func (sshKeys) NewHostKey(id string) (vm.HostKey, error) {
	k, err := ssh.NewHostKey(id)
	return vm.HostKey{Private: k.Private, Public: k.Public}, err
}

// Authorized gives the public lines that may log in.
func (s sshKeys) Authorized(context.Context) ([]string, error) {
	k, err := ssh.EnsureUserKey(s.path, s.create)
	if err != nil {
		return nil, err
	}
	return []string{k.Public}, nil
}

// Access writes the VM's known_hosts and gives a client's options.
func (s sshKeys) Access(dir, id, _ string, key string) (vm.Access, error) {
	if _, err := ssh.EnsureUserKey(s.path, s.create); err != nil {
		return vm.Access{}, err
	}
	alias, err := ssh.Alias(id)
	if err != nil {
		return vm.Access{}, err
	}
	text, err := ssh.KnownHosts(id, key)
	if err != nil {
		return vm.Access{}, err
	}
	known := filepath.Join(dir, "known_hosts")
	if err := fsx.WriteFile(known, text, 0o600); err != nil {
		return vm.Access{}, err
	}
	t := ssh.Target{ID: id, User: "root", KeyPath: s.path, KnownHosts: known} // the client adds its own ProxyCommand
	options, err := t.Options()
	if err != nil {
		return vm.Access{}, err
	}
	return vm.Access{User: t.User, KeyPath: t.KeyPath, KnownHosts: known, Alias: alias, Options: options}, nil
}
