package daemon

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor/hosted"
	"github.com/banger-dev/banger/internal/image"
	"github.com/banger-dev/banger/internal/kernel"
	"github.com/banger-dev/banger/internal/op"
	"github.com/banger-dev/banger/internal/vm"
)

// What VMs are made of under the hosted driver, which needs none of it: empty
// files below Dir.
type (
	// hostedImages has every image but "missing".
	hostedImages struct{ Dir string }
	// hostedKernels has every kernel.
	hostedKernels struct{ Dir string }
	// hostedBoot writes seeds that a hosted machine reads.
	hostedBoot struct{ Dir string }
)

var (
	_ vm.Images  = hostedImages{}
	_ vm.Kernels = hostedKernels{}
	_ vm.Boot    = hostedBoot{}
)

// Known fails for "missing".
func (hostedImages) Known(_ context.Context, name string) error {
	if name == "missing" {
		return errs.New(errs.NotFound, "image_unknown", "no image named %q", name).WithHint("banger image list --all")
	}
	return nil
}

// Ensure gives an image with nothing in it.
func (i hostedImages) Ensure(ctx context.Context, name string, _ op.Reporter) (image.Image, error) {
	if err := i.Known(ctx, name); err != nil {
		return image.Image{}, err
	}
	path, err := empty(i.Dir, "rootfs.ext4")
	return image.Image{Names: []string{name}, Manifest: image.Manifest{Name: name, Digest: "sha256:" + name, Kernel: "hosted", Init: "/sbin/init"}, Rootfs: path}, err
}

// Ensure gives a kernel with nothing in it.
func (k hostedKernels) Ensure(_ context.Context, name string, _ op.Reporter) (kernel.Kernel, error) {
	path, err := empty(k.Dir, "vmlinux")
	return kernel.Kernel{Names: []string{name}, Manifest: kernel.Manifest{Name: name, Digest: "sha256:" + name}, VMLinux: path}, err
}

// Initramfs gives an empty one.
func (b hostedBoot) Initramfs(context.Context, kernel.Kernel) (vm.Initramfs, error) {
	path, err := empty(b.Dir, "initramfs")
	return vm.Initramfs{Path: path, Digest: "hosted"}, err
}

// Seeded writes the token alone.
func (hostedBoot) Seeded(_ context.Context, _ vm.Initramfs, dst string, s vm.Seed) error {
	text, err := hosted.Seed(s.Token)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, text, 0o600)
}

// Cmdline is what was asked for: words by which a hosted guest misbehaves.
func (hostedBoot) Cmdline(extra []string) string { return strings.Join(extra, " ") }

func empty(dir, name string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	return path, f.Close()
}
