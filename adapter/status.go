package adapter

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// statusConfigMap says in words whose the APIServices are, one key for each.
const statusConfigMap = "sluice-adapter-status"

// statusWriter keeps the ConfigMap. A replica writes when what it finds changes, or the ConfigMap is gone, and only then:
// two replicas that see different things, as while their flags are being changed, do not write over each other again
// and again.
type statusWriter struct {
	client corev1client.ConfigMapInterface
	// said is what this replica last found to be there, or wrote.
	said map[string]string
}

// write makes the ConfigMap say what was found.
func (s *statusWriter) write(ctx context.Context, found map[string]finding) error {
	words := make(map[string]string, len(found))
	for name, f := range found {
		words[name] = f.words
	}
	if err := s.replace(ctx, words); err != nil {
		return fmt.Errorf("status in config map %s: %w", statusConfigMap, err)
	}
	s.said = words
	return nil
}

func (s *statusWriter) replace(ctx context.Context, words map[string]string) error {
	now, err := s.client.Get(ctx, statusConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = s.client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{
				Name: statusConfigMap, Labels: map[string]string{"app.kubernetes.io/managed-by": Service},
			},
			Data: words,
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil || maps.Equal(words, s.said) || maps.Equal(now.Data, words) {
		return err
	}
	now = now.DeepCopy()
	now.Data = words
	// With the resource version that was read: another replica's write in between is a conflict, and looked at again.
	_, err = s.client.Update(ctx, now, metav1.UpdateOptions{})
	return err
}
