//go:build soak

package debian

import "testing"

// TestSamePackagesSameImage makes an image twice, which the short run of
// make test has no time for.
func TestSamePackagesSameImage(t *testing.T) {
	store, _ := tinyStore(t)
	one, err := store.Ensure(t.Context(), "tiny", nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := store.Pull(t.Context(), "tiny", true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if one.Manifest.Digest != two.Manifest.Digest {
		t.Errorf("two makings differ: %s and %s", one.Manifest.Digest, two.Manifest.Digest)
	}
}
