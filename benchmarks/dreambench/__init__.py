"""The DreamBooth paper's evaluation (Ruiz et al., arXiv 2208.12242, section 4) with this trainer:
`python -m benchmarks.dreambench`.

For each subject a model is trained and draws each prompt several times. DINO and CLIP-I are the
mean cosine over all pairs of a picture and a photo, by DINO ViT-S/16 and by CLIP; CLIP-T is the
mean cosine of each picture with its prompt; PRES is DINO's of pictures of the class instead. Each
is averaged over a subject, then over the subjects.

The paper's own, and the default here: 30 subjects, 25 prompts, 4 pictures of each; trained as
"a [identifier] [class]" for about 1000 steps at 5e-6 (section 3.3, for Stable Diffusion), beside
about 1000 pictures of "a [class]" of weight 1.

Ours, where the paper and its supplement say nothing: which rare token the identifier is (sks), one
photo per step, the text encoder frozen ("possibly" trained, they say), AdamW, fp32, DDIM of 50
steps and guidance 7.5 for pictures, also for those of the class, where they take an ancestral
sampler; the seeds; how many pictures of the class PRES takes; that the prompt which CLIP-T reads
lacks the identifier, which CLIP cannot know. They name no version of CLIP either.

DIV, the paper's other measure of prior preservation, takes LPIPS. Diversity here does not, and the
two are not comparable."""
